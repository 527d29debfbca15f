"""Files in, files out: where predictions go, and what is refused before anything is written."""

import json
import logging
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from helpers.data_helpers import write_png
from helpers.predictor_helpers import (
    make_experiment,
    make_float_predictor,
    make_predictor,
    random_image,
    toy,
)
from PIL import Image

from jaxseg.errors import DataError, JaxsegError, NonFiniteError
from jaxseg.inference.files import find_images, load_submission_ids, predict_files, save_submission


class Segment:
    """A predictor that finds class 1 everywhere."""

    experiment, palette, classes = make_experiment(), ((0, 0, 0), (255, 0, 0)), ("a", "b")

    def __call__(self, image):
        return np.ones(image.shape[:2], np.int32)


def photos(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(10, 14, 3, seed=i)).save(folder / name)
    return folder


def written(folder):
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    )


# --- What is written ------------------------------------------------------------------------------


def test_files_in_files_out(tmp_path):
    photos(tmp_path / "in", "a.png", "b.PNG")
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    files = predict_files(make_predictor(), tmp_path / "in", tmp_path / "out")
    assert written(tmp_path / "out") == ["a.png", "a_overlay.png", "b.png", "b_overlay.png"]
    assert [path.name for path in files] == ["a.png", "b.png"]
    with (
        Image.open(tmp_path / "in" / "a.png") as photo,
        Image.open(tmp_path / "out" / "a.png") as label,
    ):
        np.testing.assert_array_equal(np.asarray(label), np.asarray(photo).argmax(-1))
    assert predict_files(make_predictor(), tmp_path / "in" / "a.png", tmp_path / "one") == [
        tmp_path / "one" / "a.png"
    ]


def test_folders_in_the_input_are_kept_and_the_output_is_left_out(tmp_path):
    for name in ("a", "b/a", "b/.hidden", "out/a"):
        write_png(tmp_path / f"in/{name}.png", np.full((4, 6, 3), 9, np.uint8))
    segment = Segment()
    files = predict_files(segment, tmp_path / "in", tmp_path / "in/out")
    assert [file.relative_to(tmp_path / "in/out").as_posix() for file in files] == [
        "a.png",
        "b/a.png",
    ]
    assert (tmp_path / "in/out/b/a_overlay.png").is_file()
    assert [
        file.name
        for file in predict_files(
            segment, tmp_path / "in/b/a.png", tmp_path / "one", submission_ids=(7, 8)
        )
    ] == ["a.png"]
    assert (
        written(tmp_path / "one") == ["a.png"]
        and cv2.imread(str(tmp_path / "one/a.png"), 0)[0, 0] == 8
    )
    predict_files(
        segment, tmp_path / "in/b/a.png", tmp_path / "rgb", submission_ids=((1, 2, 3), (4, 5, 6))
    )
    assert cv2.imread(str(tmp_path / "rgb/a.png"))[0, 0].tolist() == [6, 5, 4]


@pytest.mark.parametrize("name", ["mask.png", "new/mask.png", "mask.PNG", "x.y.png"])
@pytest.mark.parametrize("official", [None, (7, 8)])
def test_one_image_may_be_written_as_one_file(tmp_path, name, official):
    photos(tmp_path / "in", "a.jpg", "b.jpg")
    assert predict_files(
        Segment(), tmp_path / "in/a.jpg", tmp_path / "out" / name, submission_ids=official
    ) == [tmp_path / "out" / name]
    overlay = [] if official else [f"{name[:-4]}_overlay.png"]
    assert written(tmp_path / "out") == sorted([name, *overlay])
    with Image.open(tmp_path / "out" / name) as label:
        assert set(np.unique(np.asarray(label))) == ({8} if official else {1})


def test_a_folder_may_be_named_like_a_file_or_a_version(tmp_path):
    photos(tmp_path / "in", "a.jpg")
    (tmp_path / "old.png").mkdir()
    for folder in ("old.png", "out.v1", "out"):
        assert predict_files(Segment(), tmp_path / "in", tmp_path / folder) == [
            tmp_path / folder / "a.png"
        ]


def test_what_is_left_out_is_logged(tmp_path, caplog):
    write_png(tmp_path / "in/a.png", np.full((4, 6, 3), 9, np.uint8))
    for name in ("notes.txt", ".b.png"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in/loop").symlink_to(".")
    with caplog.at_level(logging.INFO, "jaxseg"):
        predict_files(Segment(), tmp_path / "in", tmp_path / "out")
    [message] = [text for text in caplog.messages if "left out" in text]
    assert str(tmp_path / "in") in message and message.endswith(".b.png, loop, notes.txt")


@pytest.mark.parametrize("name", ["photo", "a.b.c.png", "x.jfif", "x.JPE", "frame.0001"])
def test_names_of_predictions(tmp_path, name):
    write_png(tmp_path / "x.png", np.full((4, 6, 3), 9, np.uint8))
    (tmp_path / "in").mkdir()
    (tmp_path / "x.png").rename(tmp_path / "in" / name)
    stem = {"photo": "photo", "a.b.c.png": "a.b.c", "frame.0001": "frame.0001"}.get(name, "x")
    assert predict_files(Segment(), tmp_path / "in", tmp_path / "out") == [
        tmp_path / f"out/{stem}.png"
    ]


def test_an_input_without_images(tmp_path):
    with pytest.raises(DataError) as caught:
        find_images(tmp_path / "gone")
    assert caught.value.file == str(tmp_path / "gone") and caught.value.field == "source"
    (tmp_path / "plan.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError) as caught:
        find_images(tmp_path)
    assert caught.value.field == "source" and "plan.pdf (PDF)" in caught.value.problem


@pytest.mark.parametrize("value", [-9999, 70000, 2**32 - 1])
def test_label_values_that_a_submission_cannot_hold(tmp_path, value):
    (tmp_path / "dataset.json").write_text(
        json.dumps({"classes": ["sky", "road"], "submission_ids": [0, value]})
    )
    with pytest.raises(DataError) as error:
        load_submission_ids(tmp_path)
    assert error.value.field == "submission" and f"label value {value}" in error.value.problem


@pytest.mark.parametrize("key", ["submission_ids", "official_ids"])  # now, in the first edition
def test_label_values_of_a_workdir(tmp_path, key):
    facts = {"classes": ["sky", "road"]}
    (tmp_path / "dataset.json").write_text(json.dumps({**facts, key: [0, 65535]}))
    assert load_submission_ids(tmp_path) == [0, 65535]
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    assert list(load_submission_ids(tmp_path)) == [0, 1]


# --- Paths that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, output, decisive",
    [
        ("in", "mask.png", "folder"),
        ("in", "mask.tif", "folder"),
        ("in/a.png", "mask.jpg", "mask.png"),
        ("in/a.png", "mask.npy", "mask.png"),
        ("in", "in", "overwrite"),
        ("in/a.png", "in", "overwrite"),
        ("in/a.png", "in/a.png", "overwritten"),
        ("in/a_overlay.png", "in/a.png", "overwritten"),
        ("in", "notes", "is a file"),
        ("in/a.png", "notes/out", "cannot be written"),
        ("in/a.png", "notes/mask.png", "cannot be written"),
    ],
)
def test_outputs_that_cannot_be_written(tmp_path, source, output, decisive):
    photos(tmp_path / "in", "a.png", "a_overlay.png")
    (tmp_path / "notes").write_text("")
    before = written(tmp_path)
    with pytest.raises(JaxsegError) as error:
        predict_files(Segment(), tmp_path / source, tmp_path / output)
    assert decisive in error.value.problem + error.value.hint
    assert any(path in error.value.file for path in (source, output))
    if decisive != "cannot be written":
        assert error.value.field == "output"
    assert written(tmp_path) == before and not (tmp_path / "mask.png").exists()


def test_inputs_that_cannot_be_used(tmp_path):
    for name in ("nothing", ""):
        with pytest.raises(DataError) as error:
            predict_files(Segment(), tmp_path / name, tmp_path / "out")
        assert error.value.file == str(tmp_path / name) and error.value.field == "source"
    photos(tmp_path / "twice", "a.png", "a.jpg")
    with pytest.raises(DataError) as error:
        predict_files(Segment(), tmp_path / "twice", tmp_path / "out")
    assert error.value.field == "source" and Path(error.value.file).stem == "a"
    assert error.value.problem.endswith("a.png")
    photos(tmp_path / "beside", "a.png", "a_overlay.jpg")
    with pytest.raises(DataError) as error:
        predict_files(Segment(), tmp_path / "beside", tmp_path / "out")
    assert error.value.field == "source" and error.value.problem.endswith("a_overlay.png")


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photos(tmp_path / "in", "a.png")
    assert predict_files(Segment(), "~/in/a.png", "~/out") == [tmp_path / "out/a.png"]


# --- Images that cannot be segmented --------------------------------------------------------------


def save(kind, file):
    """An image that a model of RGB uint8 cannot read; returns a part of the message."""
    if kind in ("no image", "cut"):
        Image.fromarray(random_image(40, 60, 3)).save(file.with_suffix(".jpg"))
        data = b"no image" if kind == "no image" else file.with_suffix(".jpg").read_bytes()[:-800]
        file.with_suffix(".jpg").unlink()
        file.write_bytes(data)
        return "cannot be read"
    array = {
        "16 bit": np.zeros((4, 6, 3), np.uint16),
        "float": np.zeros((4, 6, 3), np.float32),
        "5 bands": np.zeros((4, 6, 5), np.uint8),
    }[kind]
    tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")
    return {"16 bit": "uint16", "float": "float32", "5 bands": "5 channels"}[kind]


@pytest.mark.parametrize("kind", ["no image", "cut", "16 bit", "float", "5 bands"])
@pytest.mark.parametrize("alone", [True, False])
def test_errors_about_an_image_do_not_speak_of_data_sets(tmp_path, kind, alone):
    photos(tmp_path / "in", "a.png")
    bad = tmp_path / "in/z.TIF"
    what = save(kind, bad)
    assert [file.stem for file in find_images(tmp_path / "in")] == ["a", "z"]
    with pytest.raises(DataError) as error:
        segment = (
            types.SimpleNamespace(experiment=make_experiment(), classes=(), palette=())
            if kind != "cut"
            else Segment()
        )
        predict_files(segment, bad if alone else bad.parent, tmp_path / "out")
    assert error.value.file == str(bad) and what in error.value.problem and error.value.hint
    for word in ("label", "data set", "dataset"):
        assert word not in str(error.value).replace(str(tmp_path), "")
    if kind != "cut":  # which only reading it all shows
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_file_that_is_not_finite_is_refused(tmp_path, value):
    image = np.ones((6, 7, 3), np.float32)
    image[2, 3] = value
    tifffile.imwrite(tmp_path / "holed.tif", image, photometric="rgb")
    with pytest.raises(DataError) as error:
        predict_files(make_float_predictor(), tmp_path / "holed.tif", tmp_path / "out")
    assert "row 2, column 3, channel 0" in error.value.problem
    assert (
        error.value.file == str(tmp_path / "holed.tif")
        and f"holds {value} (3 values" in error.value.problem
    )


def test_a_file_with_a_value_far_outside_the_rest_is_refused(tmp_path):
    values = np.random.default_rng(0).random((10, 14, 3), np.float32)
    values[:2] = -9999
    tifffile.imwrite(tmp_path / "z.tif", values, photometric="rgb")
    with pytest.raises(DataError) as error:
        predict_files(make_float_predictor(), tmp_path / "z.tif", tmp_path / "out")
    assert "-9999 in 28 pixels" in error.value.problem
    assert error.value.file == str(tmp_path / "z.tif") and error.value.field == "dataset.nodata"


def test_pixels_without_data_are_255(tmp_path):
    image = np.random.default_rng(0).uniform(1, 200, (6, 7, 3)).astype(np.float32)
    image[2, 3:5] = -9999
    tifffile.imwrite(
        tmp_path / "tagged.tif",
        image,
        photometric="rgb",
        extratags=[(42113, "s", 0, "-9999", True)],
    )
    tifffile.imwrite(
        tmp_path / "plain.tif", np.where(image == -9999, np.nan, image), photometric="rgb"
    )
    expected = image.argmax(-1)
    expected[2, 3:5] = 255
    for segment, name in (
        (make_float_predictor(), "tagged"),
        (make_float_predictor(nodata=(np.nan,)), "plain"),
    ):
        [file] = predict_files(segment, tmp_path / f"{name}.tif", tmp_path / "out")
        with Image.open(file) as label:
            np.testing.assert_array_equal(np.asarray(label), expected)


def test_scores_that_are_not_finite_name_the_file(tmp_path):
    photos(tmp_path, "a.png")
    segment = make_predictor(model=toy(lambda images: images / 0))
    with pytest.raises(NonFiniteError) as error:
        predict_files(segment, tmp_path / "a.png", tmp_path / "out")
    assert error.value.file == str(tmp_path / "a.png") and not list(tmp_path.rglob("out/*"))
    assert "140 of 140 pixels" in error.value.problem


@pytest.mark.parametrize(
    "ids, expected",
    [
        ((7, 9), [7, 9, 255]),
        ((7, 900), [7, 900, 255]),
        (((1, 2, 3), (4, 5, 6)), [[1, 2, 3], [4, 5, 6], [0, 0, 0]]),
    ],
)
def test_official_values_of_pixels_without_data(tmp_path, ids, expected):
    save_submission(tmp_path / "a.png", np.array([[0, 1, 255]]), ids)
    with Image.open(tmp_path / "a.png") as label:
        assert np.asarray(label)[0].tolist() == expected
