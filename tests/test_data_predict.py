"""Folders that prediction refuses before it writes anything."""

import json
import logging
import types

import cv2
import numpy as np
import pytest
from data_helpers import make_config, write_png

from jaxseg.data.datasets import DataError
from jaxseg.predict import _official_ids, find_images, predict_files


@pytest.mark.parametrize("bad", ["16 bit", "damaged"])
def test_one_bad_image_stops_before_anything_is_written(tmp_path, bad):
    write_png(tmp_path / "in/a.png", np.zeros((4, 6, 3), np.uint8))
    if bad == "damaged":
        (tmp_path / "in/z.JPG").write_bytes(b"no image")
    else:
        cv2.imwrite(str(tmp_path / "in/z.PNG"), np.zeros((4, 6, 3), np.uint16))
    assert [file.stem for file in find_images(tmp_path / "in")] == ["a", "z"]
    with pytest.raises(DataError, match=r"in/z\.(JPG|PNG)"):
        predict_files(types.SimpleNamespace(config=make_config()), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_in_the_input_are_kept_and_the_output_is_left_out(tmp_path):
    for name in ("a", "b/a", "b/.hidden", "out/a"):
        write_png(tmp_path / f"in/{name}.png", np.full((4, 6, 3), 9, np.uint8))
    segment = Segment()
    files = predict_files(segment, tmp_path / "in", tmp_path / "in/out")
    assert [file.relative_to(tmp_path / "in/out").as_posix() for file in files] == ["a.png", "b/a.png"]
    assert (tmp_path / "in/out/b/a_overlay.png").is_file()
    assert [file.name for file in predict_files(segment, tmp_path / "in/b/a.png", tmp_path / "one", official_ids=(7, 8))] == ["a.png"]
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == ["a.png"] and cv2.imread(str(tmp_path / "one/a.png"), 0)[0, 0] == 8
    predict_files(segment, tmp_path / "in/b/a.png", tmp_path / "rgb", official_ids=((1, 2, 3), (4, 5, 6)))
    assert cv2.imread(str(tmp_path / "rgb/a.png"))[0, 0].tolist() == [6, 5, 4]


def test_what_is_left_out_is_told(tmp_path, caplog):
    write_png(tmp_path / "in/a.png", np.full((4, 6, 3), 9, np.uint8))
    for name in ("notes.txt", ".b.png"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in/loop").symlink_to(".")
    with caplog.at_level(logging.INFO, "jaxseg"):
        predict_files(Segment(), tmp_path / "in", tmp_path / "out")
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        f"{tmp_path / 'in'}: left out 3 (hidden, no image, or listed already): .b.png, loop, notes.txt"
    ]


@pytest.mark.parametrize("name", ["photo", "a.b.c.png", "x.jfif", "x.JPE"])
def test_names_of_predictions(tmp_path, name):
    write_png(tmp_path / "x.png", np.full((4, 6, 3), 9, np.uint8))
    (tmp_path / "in").mkdir()
    (tmp_path / "x.png").rename(tmp_path / "in" / name)
    stem = {"photo": "photo", "a.b.c.png": "a.b.c"}.get(name, "x")
    assert predict_files(Segment(), tmp_path / "in", tmp_path / "out") == [tmp_path / f"out/{stem}.png"]


def test_an_input_without_images(tmp_path):
    with pytest.raises(DataError) as caught:
        find_images(tmp_path / "gone")
    assert caught.value.file == str(tmp_path / "gone") and caught.value.field == "--input"
    (tmp_path / "plan.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError, match=r"it holds plan.pdf \(PDF\)"):
        find_images(tmp_path)


@pytest.mark.parametrize("value", [-9999, 70000, 2**32 - 1])
def test_label_values_that_a_submission_cannot_hold(tmp_path, value):
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["sky", "road"], "official_ids": [0, value]}))
    with pytest.raises(DataError, match=f"label value {value} stands for class 'road'"):
        _official_ids(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["sky", "road"], "official_ids": [0, 65535]}))
    assert _official_ids(tmp_path) == [0, 65535]


class Segment:
    """A predictor that finds class 1 everywhere."""

    config, palette, classes = make_config(), ((0, 0, 0), (255, 0, 0)), ("a", "b")

    def __call__(self, image):
        return np.ones(image.shape[:2], np.int32)
