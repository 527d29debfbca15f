"""Which files are images, and which label belongs to which."""

import gzip
import io
import logging
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from helpers.data_helpers import check_experiment, make_experiment, make_folder, write_png
from PIL import Image

from jaxseg.data import catalog
from jaxseg.data.prepare import raw_files
from jaxseg.data.sources import listing, pairs
from jaxseg.data.validate import checks, report
from jaxseg.errors import DataError
from jaxseg.inference.files import find_images

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
OTHER_KINDS = {
    "HEIC": HEIC,
    "AVIF": b"\0\0\0\x20ftypavif" + bytes(99),
    "JPEG XL": b"\xff\x0a" + bytes(99),
    "Photoshop": b"8BPS\0\1" + bytes(99),
    "JPEG XR": b"II\xbc\x01" + bytes(99),
    "OpenEXR": b"v/1\x01" + bytes(99),
    "DICOM": bytes(128) + b"DICM" + bytes(99),
}
DOCUMENTS = {
    "PDF": b"%PDF-1.7\n",
    "SVG": b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg xmlns=''/>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
}


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data", train=2, val=1)


def found(root, split="train"):
    """{stem: name of the label} of a split."""
    return {
        pair.name: pair.label.name
        for pair in pairs.find_pairs(catalog.get_spec("folder", root), root, split)
    }


def refused(root, split="train"):
    with pytest.raises(DataError) as caught:
        found(root, split)
    return caught.value


def encode(suffix):
    if suffix == ".jp2":
        Image.new("RGB", (24, 20)).save(data := io.BytesIO(), "JPEG2000")
        return data.getvalue()
    return cv2.imencode(suffix, np.zeros((20, 24, 3), np.uint8))[1].tobytes()


# --- Images ---


@pytest.mark.parametrize(
    "name, stem, suffix",
    [
        ("x.jfif", "x", ".jpg"),
        ("x.jpe", "x", ".jpg"),
        ("x.JPG", "x", ".jpg"),
        ("x.ppm", "x", ".ppm"),
        ("x.gif", "x", ".gif"),
        ("x", "x", ".png"),
        ("x", "x", ".tif"),
        ("a.b.c.png", "a.b.c", ".png"),
        ("x.dat", "x", ".bmp"),
        ("frame.0001", "frame.0001", ".webp"),
        ("x.jp2", "x", ".jp2"),
        ("photo.image", "photo", ".jpg"),
        ("my photo 1.PNG", "my photo 1", ".png"),
    ],
)
def test_images_by_their_bytes(folder, name, stem, suffix):
    (folder / "images/train" / name).write_bytes(encode(suffix))
    shutil.copy(folder / "labels/train/t0.png", folder / f"labels/train/{stem}.png")
    assert found(folder) == {"t0": "t0.png", "t1": "t1.png", stem: f"{stem}.png"}
    assert [file.name for file in find_images(folder / "images/train")] == sorted(
        ["t0.png", "t1.png", name]
    )
    check_experiment(make_experiment(root=str(folder)))


@pytest.mark.parametrize(
    "name, data",
    [
        ("notes.txt", b"BMW and P1 are no images"),
        ("p1.txt", b"P1 is a class\n"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
        ("desktop.ini", b"[x]"),
        ("t0.tif.ovr", b"II*\0" + bytes(99)),
        ("t0.thm", b"\xff\xd8\xff\xe0"),
        ("t9.png.bak", encode(".png")),
        ("empty", b""),
        ("x.json", b"{}"),
        ("x.gz", gzip.compress(b"x")),
        ("._t0.png", b"\0\5\x16\7"),
        ("t0.png~", encode(".png")),
        *((f"x.{kind}", data) for kind, data in DOCUMENTS.items()),
    ],
)
def test_what_is_not_an_image_is_left_out_and_reported(folder, name, data, caplog):
    (folder / "images/train" / name).write_bytes(data)
    assert found(folder) == {"t0": "t0.png", "t1": "t1.png"}
    assert [file.name for file in find_images(folder / "images/train")] == ["t0.png", "t1.png"]
    with caplog.at_level(logging.INFO):
        check_experiment(make_experiment(root=str(folder)))
    kind = next((f" ({kind})" for kind in DOCUMENTS if name.endswith(kind)), "")
    assert [
        record.getMessage() for record in caplog.records if "left out" in record.getMessage()
    ] == [
        f"{folder / 'images/train'}: left out 1 (hidden, no image, or listed already): {name}{kind}"
    ]


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_pictures_that_are_not_read_are_named(folder, kind):
    file = folder / "images/train/x.pic"
    file.write_bytes(OTHER_KINDS[kind])
    error = refused(folder)
    assert error.file == str(file) and kind in error.problem
    with pytest.raises(DataError, match=f"x.pic: is a picture in the format {kind}"):
        find_images(folder / "images/train")
    (folder / "images/train/x.jpg").write_bytes(encode(".jpg"))  # the same photo, exported
    shutil.copy(folder / "labels/train/t0.png", folder / "labels/train/x.png")
    assert "x" in found(folder)


def test_camera_raw_is_no_tiff(folder):
    (folder / "images/train/x.NEF").write_bytes(encode(".tif"))
    assert "camera raw" in refused(folder).problem


def test_a_broken_link(folder):
    file = folder / "images/train/gone.png"
    file.symlink_to("/nowhere/gone.png")
    error = refused(folder)
    assert error.file == str(file) and "/nowhere/gone.png" in error.problem
    experiment = make_experiment(root=folder)
    spec = catalog.load_spec(experiment.dataset)
    assert [
        (problem.kind, problem.file)
        for problem in report.check_data(experiment.dataset, experiment.eval, spec).problems
        if problem.kind != "leak"
    ] == [("damaged image", str(file))]
    file.rename(file.with_suffix(".txt"))
    assert len(found(folder)) == 2


def test_a_broken_link_of_another_data_set(tmp_path):
    (tmp_path / "images/training").mkdir(parents=True)
    (tmp_path / "images/training/a.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: is a broken link to nowhere\.jpg"):
        pairs.find_images(catalog.get_spec("ade20k", tmp_path), tmp_path, "training")


def test_what_is_left_out_of_another_data_set(tmp_path):
    for name in ("a.jpg", "b.png", "notes.txt"):
        (tmp_path / "images/training").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/training" / name).touch()
    line = pairs.left_out(catalog.get_spec("ade20k", tmp_path), tmp_path, "training")
    assert line.endswith(
        "images/training: left out 2 (hidden, not *.jpg, or listed already): b.png, notes.txt"
    )


def test_circles_and_hidden_copies(folder):
    (folder / "images/train/loop").symlink_to(folder / "images/train")
    (folder / "labels/train/loop").symlink_to(folder / "labels/train")
    for part in ("images", "labels"):
        (folder / part / "train/.ipynb_checkpoints").mkdir()
        shutil.copy(
            folder / part / "train/t0.png",
            folder / part / "train/.ipynb_checkpoints/t0-checkpoint.png",
        )
    assert found(folder) == {"t0": "t0.png", "t1": "t1.png"}
    assert pairs.unused_labels(catalog.get_spec("folder", folder), folder, "train") == []


def test_modalities_that_share_labels_by_links(folder):
    for part in ("images", "labels"):
        (folder / part / "train").rename(folder / part / "both")
        (folder / part / "train").mkdir()
    shutil.copytree(folder / "images/both", folder / "images/thermal")
    for name, images in (("rgb", "both"), ("thermal", "thermal")):
        (folder / "images/train" / name).symlink_to(folder / "images" / images)
        (folder / "labels/train" / name).symlink_to(folder / "labels/both")
    assert sorted(found(folder)) == ["rgb/t0", "rgb/t1", "thermal/t0", "thermal/t1"]
    assert pairs.unused_labels(catalog.get_spec("folder", folder), folder, "train") == []


def test_predictions_of_an_earlier_run_are_no_input(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    write_png(tmp_path / "out/a.png", np.zeros((4, 4), np.uint8))
    assert [file.name for file in find_images(tmp_path, tmp_path / "out")] == ["a.png"]


def test_official_downloads_are_walked_alike(tmp_path):
    for name in ("a.png", ".b.png", "sub/c.png", "__MACOSX/d.png"):
        write_png(tmp_path / name, np.zeros((4, 4), np.uint8))
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    assert sorted(raw_files.index_files(tmp_path)) == ["a.png", "c.png"]


# --- Labels ---


@pytest.mark.parametrize(
    "label",
    ["t0.PNG", "t0.png.png", "t0_mask.png", "t0_label.tif", "t0_gt.npy", "t0_segmentation.png"],
)
def test_names_of_labels(folder, label):
    (folder / "labels/train/t0.png").rename(folder / "labels/train" / label)
    assert found(folder) == {"t0": label, "t1": "t1.png"}
    assert pairs.unused_labels(catalog.get_spec("folder", folder), folder, "train") == []


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("nested", [False, True])
def test_unicode_forms(folder, forms, nested):
    image, label = (
        unicodedata.normalize(form, "stra\u00dfe/caf\u00e9" if nested else "caf\u00e9")
        for form in forms
    )
    image, label = (
        name.replace("stra", unicodedata.normalize(form, "\u00e9"))
        for name, form in zip((image, label), forms)
    )
    for part, name in (("images", image), ("labels", label)):
        (folder / part / f"train/{name}.png").parent.mkdir(exist_ok=True)
        (folder / part / "train/t0.png").rename(folder / part / f"train/{name}.png")
    assert len(found(folder)) == 2
    assert pairs.unused_labels(catalog.get_spec("folder", folder), folder, "train") == []


def test_a_label_is_not_taken_from_another_image(folder):
    """t0_mask.png is the label of the image t0_mask, not of t0."""
    shutil.copy(folder / "images/train/t0.png", folder / "images/train/t0_mask.png")
    (folder / "labels/train/t0.png").rename(folder / "labels/train/t0_mask.png")
    error = refused(folder)
    assert error.file == str(folder / "images/train/t0.png") and "is missing" in error.problem


def test_two_labels_of_one_image(folder):
    (folder / "labels/train/t0.png").rename(folder / "labels/train/t0_mask.png")
    shutil.copy(folder / "labels/train/t0_mask.png", folder / "labels/train/t0_gt.png")
    error = refused(folder)
    assert (
        error.file.endswith("images/train/t0.png")
        and "t0_mask.png" in error.problem
        and "t0_gt.png" in error.problem
    )
    shutil.copy(
        folder / "labels/train/t0_gt.png", folder / "labels/train/t0.png"
    )  # the exact name wins, the others are reported
    assert found(folder)["t0"] == "t0.png"
    unused = pairs.unused_labels(catalog.get_spec("folder", folder), folder, "train")
    assert [file.name for file in unused] == ["t0_gt.png", "t0_mask.png"]


@pytest.mark.parametrize(
    "label, hint",
    [
        ("t0.jpg", "There is t0.jpg, which holds PNG: rename it to t0.png"),
        ("t0", "There is t0, which holds PNG"),
        ("T0.png", "There is T0.png: rename it to t0.png"),
        ("t0-colors.png", "There is t0-colors.png: rename it"),
        ("mask_t0.png", "There is mask_t0.png: rename it"),
        ("t00.png", ""),
    ],
)
def test_what_lies_where_a_label_is_missing(folder, label, hint):
    (folder / "labels/train/t0.png").rename(folder / "labels/train" / label)
    text = str(refused(folder))
    assert (
        "labels/train/t0.png is missing" in text
        and hint in text
        and (hint or "There is" not in text)
    )


@pytest.mark.parametrize("suffix", [".jpg", ".ppm", ".webp", ".jp2"])
def test_labels_in_formats_that_are_no_labels(folder, suffix):
    (folder / "labels/train/t0.png").unlink()
    (folder / f"labels/train/t0{suffix}").write_bytes(encode(suffix))
    assert f"There is t0{suffix}: labels must be PNG, TIFF, BMP, GIF or NPY" in str(refused(folder))


def test_a_label_behind_a_broken_link(folder):
    (folder / "labels/train/t0.png").unlink()
    (folder / "labels/train/t0.png").symlink_to("../gone.png")
    assert "t0.png is a broken link to ../gone.png" in str(refused(folder))


def test_labels_beside_the_images(folder):
    for file in (folder / "labels/train").iterdir():
        file.rename(folder / f"images/train/{file.stem}_mask.png")
    (folder / "labels/train").rmdir()
    assert "Labels seem to be beside the images (t0_mask.png): move them there" in str(
        refused(folder)
    )


@pytest.mark.parametrize(
    "other", ["Images/train", "images/training", "image/train", "images/Train"]
)
def test_folders_of_other_names(folder, other):
    moved = folder / "moved"
    (folder / "images").rename(moved)
    (folder / other).parent.mkdir(exist_ok=True)
    (moved / "train").rename(folder / other)
    wrong, right = (
        (other.split("/")[0], "images")
        if not other.startswith("images")
        else (other.split("/")[1], "train")
    )
    assert f"{wrong}: if it is this one, rename it to {right}" in str(refused(folder))


def test_labels_that_no_image_has(folder):
    for name in ("x.png", "sub/y.tif", ".hidden.png", "notes.txt"):
        write_png(folder / "labels/train/x.png", np.zeros((4, 4), np.uint8))
        (folder / "labels/train" / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "labels/train/t0.png", folder / "labels/train" / name)
    unused = pairs.unused_labels(catalog.get_spec("folder", folder), folder, "train")
    assert [str(file.relative_to(folder)) for file in unused] == [
        "labels/train/sub/y.tif",
        "labels/train/x.png",
    ]
    experiment = make_experiment(root=folder, train_split="train[:1]")
    spec = catalog.load_spec(experiment.dataset)
    split = checks.find_splits(experiment.dataset, experiment.eval, spec)[0]
    assert len(split.unused_labels()) == 2  # the rest of the split's images still own their labels


# --- Lists ---


LISTS = {
    "plain": "a0\na1\na2\n",
    "CRLF and blanks": "a0\r\n\r\n  a1  \r\na2",
    "second column": "a0 1\na1 -1\na2\t1\n",
    "suffixes": "a0.jpg\na1.JPG\na2.jpg\n",
    "paths": "JPEGImages/a0.jpg SegmentationClass/a0.png\n./JPEGImages/a1.jpg\nJPEGImages/a2\n",
    "comments": "# all\na0\na1\n#a9\na2\n",
    "twice": "a0\na1\na0\na2\na1\n",
}


@pytest.fixture
def voc(tmp_path):
    for name in ("a0", "a1", "a2", "my photo"):
        for file, mode in (
            (f"JPEGImages/{name}.jpg", "RGB"),
            (f"SegmentationClass/{name}.png", "L"),
        ):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            Image.new(mode, (4, 4)).save(tmp_path / file)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    return tmp_path


def listed(root, text, encoding="utf-8"):
    (root / "ImageSets/Segmentation/train.txt").write_text(text, encoding=encoding, newline="")
    return [pair.name for pair in pairs.find_pairs(catalog.get_spec("voc12", root), root, "train")]


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_images(voc, kind):
    assert listed(voc, LISTS[kind]) == ["a0", "a1", "a2"]
    line = pairs.left_out(catalog.get_spec("voc12", voc), voc, "train")
    assert (
        line.endswith("train.txt: lists 2 more than once, which count once: a0, a1")
        if kind == "twice"
        else not line
    )


def test_a_list_with_blanks_in_names(voc):
    assert listed(voc, "my photo\na0 1\n") == ["my photo", "a0"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_in_another_encoding(voc, encoding):
    assert listed(voc, "a0\na1\n", encoding) == ["a0", "a1"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_a_list_that_cannot_be_read(voc, encoding):
    with pytest.raises(DataError) as caught:
        listed(voc, "a0\n\u00e9\n", encoding)
    assert caught.value.file.endswith("ImageSets/Segmentation/train.txt")


def test_a_listed_image_that_is_missing(voc):
    with pytest.raises(DataError) as caught:
        listed(voc, "a0\na7.jpg\n")
    assert (
        caught.value.file == str(voc / "JPEGImages/a7.jpg")
        and "train.txt lists it" in caught.value.problem
    )


def test_stems():
    names = {
        "photo": "photo",
        "photo.jpg": "photo",
        "a.b.c.png": "a.b.c",
        "frame.0001": "frame.0001",
        "x.": "x.",
        "x.JFIF": "x",
    }
    assert {name: listing.image_stem(name) for name in names} == names
