"""Reading pairs in place, and every way in which a folder can be wrong."""

import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from helpers.data_helpers import (
    check_experiment,
    eval_samples,
    make_experiment,
    make_folder,
    train_batches,
    write_png,
)
from PIL import Image

from jaxseg.data import catalog, sources
from jaxseg.data.decode import formats
from jaxseg.data.sources import pairs
from jaxseg.data.validate import checks
from jaxseg.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def check(root, **dataset):
    experiment = make_experiment(root=root, **dataset)
    check_experiment(experiment)
    return experiment


def refused(root, *parts, **dataset):
    """The check's message, which holds all `parts`."""
    with pytest.raises(DataError) as caught:
        check(root, **dataset)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


# --- What is read ---


def test_a_good_folder_passes_and_reads(folder):
    config = check(folder)
    samples = eval_samples(config)
    assert samples.names == ["v0", "v1"] and samples[0]["image"].shape == (20, 24, 3)
    assert samples[-1]["label"].dtype == np.int32 and set(np.unique(samples[-1]["label"])) <= {
        0,
        1,
        2,
        255,
    }


def test_palette_label_keeps_its_ids(folder):
    ids = np.arange(20 * 24).reshape(20, 24) % 3
    label = Image.fromarray(ids.astype(np.uint8), "L").convert("P")
    label.putdata(ids.ravel().tolist())
    label.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    label.save(folder / "labels/val/v0.png")
    np.testing.assert_array_equal(eval_samples(check(folder))[0]["label"], ids)


def test_16_bit_label(folder):
    ids = np.uint16([[0, 1], [2, 255]])
    cv2.imwrite(str(folder / "labels/val/v0.png"), ids)
    cv2.imwrite(str(folder / "images/val/v0.png"), np.zeros((2, 2, 3), np.uint8))
    np.testing.assert_array_equal(eval_samples(check(folder))[0]["label"], ids)


def test_resized_shape_comes_from_the_header(folder):
    samples = eval_samples(make_experiment(root=folder, evaluation=dict(resize=(48, 30))))
    assert samples.shape(0) == (30, 36) == samples[0]["image"].shape[:2] and samples[0][
        "label"
    ].shape == (20, 24)


@pytest.mark.parametrize("labels, raw, road", [("labelIds", 26, 0), ("labelTrainIds", 13, 7)])
def test_cityscapes_layout(tmp_path, labels, raw, road):
    for split in ("train", "val"):
        write_png(
            tmp_path / f"leftImg8bit/{split}/bonn/bonn_1_leftImg8bit.png",
            np.zeros((4, 6, 3), np.uint8),
        )
        label = np.full((4, 6), raw, np.uint8)
        label[0] = 7
        write_png(tmp_path / f"gtFine/{split}/bonn/bonn_1_gtFine_{labels}.png", label)
    samples = eval_samples(check(tmp_path, name="cityscapes"))
    assert (
        samples.names == ["bonn_1"]
        and (samples[0]["label"][1:] == 13).all()
        and (samples[0]["label"][0] == road).all()
    )


def test_listed_layout(tmp_path):
    for stem in ("a", "b", "c", "unused"):
        write_png(tmp_path / f"JPEGImages/{stem}.jpg", np.zeros((4, 6, 3), np.uint8))
        kind = "Aug" if stem == "b" else ""
        write_png(
            tmp_path / f"SegmentationClass{kind}/{stem}.png",
            np.arange(24, dtype=np.uint8).reshape(4, 6) % 21,
        )
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stem in (("train", "a"), ("aug", "b"), ("val", "c")):
        (lists / f"{name}.txt").write_text(f"{stem}\n")
    found = pairs.find_pairs(catalog.get_spec("voc12aug"), tmp_path, "train")
    assert [pair.name for pair in found] == ["a", "b"]
    check(tmp_path, name="voc12aug")
    (lists / "val.txt").write_text("gone\n")
    refused(tmp_path, "gone.jpg: no such file", "val.txt lists it", name="voc12aug")


# --- What is refused ---


def test_empty_split(folder):
    for file in (folder / "images/val").iterdir():
        file.unlink()
    refused(folder, "images/val: no image of split 'val'", "it is empty", ".jpg")
    (folder / "images/val").rmdir()
    refused(folder, "images/val: no such folder", "put the images of split 'val' there")


def test_image_without_label(folder):
    (folder / "labels/train/t1.png").unlink()
    refused(folder, "images/train/t1.png", "its label", "labels/train/t1.png is missing")
    (folder / "labels/train/t1.jpg").touch()
    refused(
        folder,
        "There is t1.jpg: labels must be PNG, TIFF, BMP, GIF or NPY, not compressed with loss.",
    )
    (folder / "labels/train/t1.jpg").rename(folder / "labels/train/t1.txt")
    refused(folder, "There is t1.txt: labels must be PNG, TIFF, BMP, GIF or NPY.")


def test_label_without_image_is_reported(folder, caplog):
    (folder / "images/train/t1.png").unlink()
    with caplog.at_level(logging.WARNING):
        check(folder)
    assert "labels/train/t1.png and 0 other labels have no image" in caplog.text


def test_sizes_differ(folder):
    write_png(folder / "labels/val/v1.png", np.zeros((20, 23), np.uint8))
    refused(folder, "images/val/v1.png: is 24x20", "labels/val/v1.png is 23x20", "equally large")


def test_value_outside_the_classes(folder):
    label = np.zeros((20, 24), np.uint8)
    label[3, 5:8], label[9, 9] = 7, 200
    write_png(folder / "labels/train/t2.png", label)
    refused(
        folder,
        "labels/train/t2.png: label value 7, 3 pixels, first at row 3, column 5 (and other such "
        "values: 200)",
        "3 classes nor 255",
        "0 to 2: 'sky' ... 'car'",
    )


def test_value_254_is_unknown_too(folder):
    write_png(folder / "labels/train/t0.png", np.full((20, 24), 254, np.uint8))
    refused(folder, "label value 254, 480 pixels")


def test_16_bit_value_outside(folder):
    cv2.imwrite(str(folder / "labels/train/t0.png"), np.full((20, 24), 1000, np.uint16))
    refused(folder, "t0.png: label value 1000, 480 pixels")


def test_colour_label(folder):
    write_png(folder / "labels/val/v0.png", np.zeros((20, 24, 3), np.uint8))
    refused(
        folder,
        "labels/val/v0.png: is a label of 3 channels (PNG of mode RGB)",
        "declare colours in classes.txt, one line a class: "
        "`road 128 64 128`, or save class numbers",
    )


def write_colour_labels(folder):
    """The folder's labels as RGB and RGBA, with their table."""
    (folder / "classes.txt").write_text(
        "sky 0 0 255\nroad 128 64 128\ncar 255 0 0\nignore 255 255 255\n"
    )
    colors = np.full((256, 3), 255, np.uint8)
    colors[:3] = (0, 0, 255), (128, 64, 128), (255, 0, 0)
    for file in (folder / "labels").glob("*/*.png"):
        mode = "RGBA" if file.stem == "v1" else "RGB"
        Image.fromarray(colors[np.asarray(Image.open(file))]).convert(mode).save(file)


def test_colour_labels_with_a_table(folder):
    numbers = [
        eval_samples(make_experiment(root=str(folder)))[index]["label"] for index in range(2)
    ]
    batch = next(train_batches(make_experiment(root=str(folder)), devices=1))
    write_colour_labels(folder)
    samples = eval_samples(check(folder))
    for index, label in enumerate(numbers):
        np.testing.assert_array_equal(samples[index]["label"], label)
    colored = next(train_batches(make_experiment(root=str(folder)), devices=1))
    np.testing.assert_array_equal(colored["label"], batch["label"])


def test_colour_outside_the_table(folder):
    write_colour_labels(folder)
    label = np.asarray(Image.open(folder / "labels/train/t2.png")).copy()
    label[3, 5:8] = 120, 60, 120
    write_png(folder / "labels/train/t2.png", label)
    refused(
        folder,
        "labels/train/t2.png: label colour (120, 60, 120), 3 pixels, first at row 3, column 5",
        "nearest is (128, 64, 128), 'road'",
    )


def test_number_of_an_ignored_line_is_ignored(folder):
    before = eval_samples(make_experiment(root=str(folder)))[0]["label"]
    (folder / "classes.txt").write_text("void 0 0 0\nroad\ncar\n")
    after = eval_samples(check(folder))[0]["label"]
    np.testing.assert_array_equal(after, np.array([255, 0, 1] + [255] * 253)[before])


def test_label_suffix_in_any_case(folder):
    for name in ("train/t0.PNG", "train/t1.Png", "val/v0.PNG"):
        file = folder / "labels" / name
        file.with_suffix(".png").rename(file)
    spec = catalog.get_spec("folder", folder)
    assert pairs.find_pairs(spec, folder, "train")[1].label.name == "t1.Png"
    check(folder)


def test_mask_of_0_and_255(folder):
    for split, stems in (("train", "t"), ("val", "v")):
        for file in (folder / "labels" / split).glob(f"{stems}*"):
            write_png(file, np.uint8([[0, 255] * 12] * 20))
    refused(
        folder,
        "labels/train: the labels of split 'train' hold only 0 and 255",
        "write 1 instead of 255",
    )


def test_nothing_but_ignored(folder):
    for file in (folder / "labels/val").iterdir():
        write_png(file, np.full((20, 24), 255, np.uint8))
    refused(folder, "split 'val' hold nothing but 255")


@pytest.mark.parametrize("data", [b"", b"not an image", None])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_damaged_file(folder, kind, data):
    file = folder / kind / "val/v1.png"
    file.write_bytes(file.read_bytes()[:-30] if data is None else data)
    refused(folder, f"{kind}/val/v1.png: cannot be read", "damaged")


def test_truncated_jpeg(folder):
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))[
        1
    ].tobytes()
    (folder / "images/val/v1.png").unlink()
    (folder / "images/val/v1.jpg").write_bytes(whole[: len(whole) // 2])
    refused(folder, "images/val/v1.jpg: cannot be read as an image", "truncated")


def test_16_bit_image(folder):
    cv2.imwrite(str(folder / "images/val/v1.png"), np.zeros((20, 24, 3), np.uint16))
    refused(
        folder,
        "images/val/v1.png: an image of uint16",
        "config.dataset.dtype is uint8",
        "save all images of a data set alike",
    )


def test_two_images_of_one_name(folder):
    (folder / "images/train/t0.JPG").write_bytes((folder / "images/train/t0.png").read_bytes())
    refused(
        folder, "images/train/t0.png: has the name of", "images/train/t0.JPG", "rename or remove"
    )


def test_channels(folder):
    refused(
        folder,
        "t0.png: has 3 channels, but config.dataset.channels=5; set config.dataset.channels=3",
        channels=5,
    )


def test_evaluation_data_of_other_classes(folder):
    evaluation = dict(dataset="cityscapes", root=str(folder))
    config = make_experiment(root=folder, evaluation=evaluation)
    with pytest.raises(
        DataError, match=r"'cityscapes' has 19 classes, number 0 is 'road'.* 3, number 0 is 'sky'"
    ) as error:
        check_experiment(config)
    assert error.value.field == "eval.root"


def test_evaluation_data_with_classes_in_another_order(folder, tmp_path_factory):
    other = make_folder(tmp_path_factory.mktemp("other"))
    config = make_experiment(root=folder, evaluation=dict(root=str(other)))
    check_experiment(config)
    (other / "classes.txt").write_text("car\nroad\nsky\n")
    with pytest.raises(DataError, match=r"number 0 is 'car'.* number 0 is 'sky'") as error:
        check_experiment(config)
    assert error.value.file == str(other / "classes.txt") and error.value.field == "eval.root"


def test_images_in_folders_and_behind_links(folder, tmp_path_factory):
    more = tmp_path_factory.mktemp("more")
    for part in ("images", "labels"):
        (folder / part / "train/t0.png").rename(more / f"{part}.png")
        (folder / part / "train/sub").symlink_to(more / part)
        (more / part).mkdir()
        (more / f"{part}.png").rename(more / part / "t0.png")
    assert (
        "sub/t0" in sources.open_source(catalog.get_spec("folder", folder), folder, "train").names
    )
    check(folder)


def test_ids_that_cannot_be_classes(folder):
    (folder / "labels/train/t0.png").unlink()
    np.save(folder / "labels/train/t0.npy", np.full((20, 24), 2**32 + 1))
    refused(folder, "t0.npy: label value 4294967297")
    np.save(folder / "labels/train/t0.npy", np.full((20, 24), -3, np.int16))
    refused(folder, "t0.npy: label value -3")


def test_label_of_4_bits(folder):
    header = struct.pack(">IIBBBBB", 24, 20, 4, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([0x01, 0x20] * 6) for _ in range(20))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (folder / "labels/val/v0.png").write_bytes(formats.PNG + png)
    np.testing.assert_array_equal(
        eval_samples(check(folder))[0]["label"], np.resize([0, 1, 2, 0], (20, 24))
    )


def test_raw_ids_and_label_formats(folder):
    """label_map.txt gives raw ids their classes; labels may be TIFF, BMP and NPY."""
    before = [eval_samples(make_experiment(root=str(folder)))[i]["label"] for i in range(2)]
    raw = np.full(256, 9000, np.uint16)
    raw[:3], raw[255] = (255, 7, 1000), 3
    for file in list((folder / "labels").glob("*/*.png")):
        ids = raw[np.asarray(Image.open(file))]
        file.unlink()
        if file.stem in ("v1", "t1"):
            np.save(file.with_suffix(".npy"), ids)
        else:
            tifffile.imwrite(file.with_suffix(".tif"), ids)
    (folder / "label_map.txt").write_text(
        "# raw ids\n255 sky\n7 road # asphalt\n1000 car\n2-4 ignore\n"
    )
    samples = eval_samples(check(folder))
    for index, label in enumerate(before):
        np.testing.assert_array_equal(samples[index]["label"], label)
    table = checks.format_label_map(samples.spec)
    assert all(
        text in table for text in ("255 -> 0 sky", "7 -> 1 road", "1000 -> 2 car", "2-4 -> ignored")
    )
    (folder / "label_map.txt").write_text("255 sky\n7 road\n2-4 ignore\n1000 van\n")
    refused(folder, "label_map.txt: line 4: 'van' is not a class of classes.txt")
    (folder / "label_map.txt").write_text("255 sky\n7 road\n")
    refused(folder, "label_map.txt: no label value stands for class 'car'")
    (folder / "label_map.txt").write_text("255 sky\n7 road\n1000 car\n")
    refused(folder, "label value 3, ", "or say in label_map.txt what it stands for")
    (folder / "label_map.txt").write_text("255 sky\n7 road\n1000 car\n7 car\n")
    refused(folder, "line 4: label value 7 has a line already")
    (folder / "label_map.txt").write_text("sky\n")
    refused(folder, "line 1: 'sky' is not a label value and a class")


def test_splits_are_sliced_repeated_and_joined(folder):
    spec = catalog.get_spec("folder", folder)
    names = [
        sources.open_source(spec, folder, split).names
        for split in ("train[:2]", "train[40%:]+val*2", "train[1:2]")
    ]
    assert names == [["t0", "t1"], ["t2", "t3", "t4", "v0", "v1", "v0", "v1"], ["t1"]]
    joined = sources.open_source(spec, folder, "val+train[3:]")
    np.testing.assert_array_equal(
        joined.read(2)[1], sources.open_source(spec, folder, "train").read_label(3)
    )
    assert (
        joined.header(0).size == (20, 24)
        and joined.fingerprint() != sources.open_source(spec, folder, "val").fingerprint()
    )
    check(folder, train_split="train[:3]+val", val_split="val[:1]")
    refused(
        folder,
        "split 'train[9:]': train[9:] is empty, as train has 5 samples",
        train_split="train[9:]",
    )
    refused(
        folder,
        "split 'train**2' is malformed; write a name, a slice 'train[:4]'",
        train_split="train**2",
    )


def test_one_class_teaches_nothing(folder):
    for file in (folder / "labels/train").iterdir():
        write_png(file, np.ones((20, 24), np.uint8))
    refused(folder, "labels/train: the labels of split 'train' hold one class only, 'road' (1)")
    (folder / "classes.txt").write_text("a\nb\n")
    for file in (folder / "labels").glob("*/*"):
        write_png(file, np.eye(20, 24, dtype=np.uint8) * 255)
    refused(folder, "hold only 0 and 255", "label_map.txt beside classes.txt: `0 a` and `255 b`")
    (folder / "label_map.txt").write_text("0 a\n255 b\n")
    assert set(np.unique(eval_samples(check(folder))[0]["label"])) == {0, 1}


def test_check_samples_limits_what_is_read(folder, monkeypatch, caplog):
    write_png(folder / "labels/train/t1.png", np.full((20, 24), 9, np.uint8))
    check(folder, check_samples=0)
    refused(folder, "label value 9", check_samples=2)  # a small folder is checked whole
    monkeypatch.setattr(checks, "CHECKED_WHOLE", 4)
    with caplog.at_level(logging.INFO):
        check(folder, check_samples=2)  # the first and the last
    assert (
        "checked 2 of 5 pairs of split train; config.dataset.check_samples=5 checks all"
        in caplog.text
    )
    assert "split val" not in caplog.text
    refused(folder, "label value 9", check_samples=500)


def test_the_loader_says_the_same(folder):
    write_png(folder / "labels/train/t1.png", np.full((20, 24), 9, np.uint8))
    batches = train_batches(make_experiment(root=str(folder), batch_size=8), devices=1)
    with pytest.raises(DataError, match=r"labels/train/t1\.png: label value 9, 480 pixels"):
        next(batches)
