"""Broken data sets stop training before step 0, with one message that names file, value and fix."""

import os
from collections import Counter
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from helpers.broken_data import (
    ERRORS,
    LARGE,
    Damage,
    cut_pixels,
    cutting,
    drawing,
    kinds,
    label,
    relabel,
    removing,
    report_on,
    stripes,
    two_classes,
    writing,
)
from helpers.data_helpers import check_experiment, make_experiment, make_folder, write_png
from PIL import Image

from jaxseg.config import get_experiment
from jaxseg.data.sources import FolderSource
from jaxseg.data.sources import open as open_module
from jaxseg.data.validate import checks
from jaxseg.errors import DataError
from jaxseg.training.loop import train

LABEL, IMAGE = "labels/train/t2.png", "images/train/t2.png"


def change_labels(root, change):
    """Change the pixels of every label."""
    for file in (root / "labels").glob("*/*.png"):
        write_png(file, change(np.asarray(Image.open(file))))


def changing_labels(change):
    return lambda root: change_labels(root, change)


def value_outside(root):
    label = np.zeros((20, 24), np.uint8)
    label[3, 5:8] = 7
    write_png(root / LABEL, label)


def color_outside(root):
    (root / "classes.txt").write_text("sky 0 0 255\nroad 128 64 128\ncar 255 0 0\nvoid 9 9 9\n")
    table = np.full((256, 3), 9, np.uint8)
    table[:3] = (0, 0, 255), (128, 64, 128), (255, 0, 0)
    change_labels(root, lambda ids: table[ids])
    label = np.asarray(Image.open(root / LABEL)).copy()
    label[4, 6] = (127, 64, 128)
    write_png(root / LABEL, label)


def random_pair(root, size):
    """t2 of another size, its image written by the caller."""
    (root / IMAGE).unlink()
    write_png(root / LABEL, stripes(size))
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def truncated_jpeg(root, size=(20, 24)):
    file = (root / IMAGE).with_suffix(".jpg")
    cv2.imwrite(str(file), random_pair(root, size))
    file.write_bytes(file.read_bytes()[:-200])


def truncated_png(root, size):
    write_png(root / IMAGE, random_pair(root, size))
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-2000])


def not_a_number(root, size=(20, 24)):
    for file in (root / "images").glob("*/*.png"):
        np.save(file.with_suffix(".npy"), np.asarray(Image.open(file), np.float32))
        if file != root / IMAGE:
            file.unlink()
    image = random_pair(root, size).astype(np.float32)
    image[5, 6, 1] = np.nan
    np.save((root / IMAGE).with_suffix(".npy"), image)


def other_channels(root):
    np.save(root / "images/train/t9.npy", np.ones((20, 24, 5), np.uint8))
    write_png(root / "labels/train/t9.png", np.eye(20, 24, dtype=np.uint8))


def empty_split(root):
    for file in (root / "images/val").iterdir():
        file.unlink()


def same_name(root):
    os.link(root / IMAGE, root / "images/train/t2.webp")


class Broken(NamedTuple):
    """How a sound folder is broken, the file of the error, and parts of its text."""

    damage: Damage
    file: str
    parts: tuple[str, ...]


BROKEN = {
    "no class list": Broken(
        removing("classes.txt"),
        "classes.txt",
        ("no such file", "write the class names into it"),
    ),
    "class twice": Broken(
        writing("classes.txt", "sky\nroad\nsky\n"),
        "classes.txt",
        ("line 1", "'sky'", "names must differ"),
    ),
    "no images": Broken(
        empty_split,
        "images/val",
        ("no image of split 'val'", "it is empty", "expected files .jpg"),
    ),
    "no label": Broken(
        removing(LABEL), IMAGE, (f"{LABEL} is missing", "add it, or take the image out")
    ),
    "other size": Broken(
        drawing(LABEL, np.eye(20, 23, dtype=np.uint8)),
        IMAGE,
        ("is 24x20", f"{LABEL} is 23x20", "make them equally large"),
    ),
    "value outside": Broken(
        value_outside,
        LABEL,
        ("label value 7, 3 pixels, first at row 3, column 5", "change the value, to 255"),
    ),
    "colours undeclared": Broken(
        changing_labels(lambda ids: np.stack([ids] * 3, -1)),
        "labels/train/t0.png",
        ("is a label of 3 channels (PNG of mode RGB)", "declare colours in classes.txt"),
    ),
    "colour outside": Broken(
        color_outside,
        LABEL,
        (
            "label colour (127, 64, 128), 1 pixels, first at row 4, column 6",
            "the nearest is (128, 64, 128), 'road'; correct the label or the table",
        ),
    ),
    "damaged image": Broken(cutting(IMAGE), IMAGE, ("cannot be read as an image", "replace it")),
    "truncated image": Broken(
        truncated_jpeg,
        "images/train/t2.jpg",
        ("cannot be read as an image", "Premature end", "replace it"),
    ),
    "large truncated image": Broken(
        partial(truncated_jpeg, size=LARGE),
        "images/train/t2.jpg",
        ("cannot be read as an image", "Premature end"),
    ),
    "large truncated PNG": Broken(
        partial(truncated_png, size=LARGE), IMAGE, ("cannot be read as an image", "replace it")
    ),
    "damaged label": Broken(
        writing(LABEL, "no PNG"),
        LABEL,
        ("cannot be read as a label (no known format)", "single-channel or palette PNG"),
    ),
    "masks of 0 and 255": Broken(
        changing_labels(lambda ids: (ids == 1) * np.uint8(255)),
        "labels/train",
        ("hold only 0 and 255, e.g. ", "t0.png", "write 1 instead of 255", "label_map.txt"),
    ),
    "ignored throughout": Broken(
        changing_labels(lambda ids: np.full_like(ids, 255)),
        "labels/train",
        ("nothing but 255 (ignore), e.g. ", "write class numbers there"),
    ),
    "one class": Broken(
        changing_labels(np.ones_like),
        "labels/train",
        ("hold one class only, 'road' (1), e.g. ", "correct the values"),
    ),
    "16 bits among 8": Broken(
        drawing(IMAGE, np.ones((20, 24, 3), np.uint16)),
        IMAGE,
        ("an image of uint16", "is uint8", "save all images of a data set alike"),
    ),
    "other channels": Broken(
        other_channels,
        "images/train/t9.npy",
        ("has 5 channels", "config.dataset.channels=5 if all images are like this"),
    ),
    "not a number": Broken(
        not_a_number,
        "images/train/t2.npy",
        ("holds nan", "row 5, column 6, channel 1", "write a number there"),
    ),
    "large, not a number": Broken(
        partial(not_a_number, size=LARGE),
        "images/train/t2.npy",
        ("holds nan", "row 5, column 6, channel 1"),
    ),
    "one name twice": Broken(
        same_name,
        "images/train/t2.webp",
        ("has the name of ", "t2.png", "rename or remove one"),
    ),
    "label map": Broken(
        writing("label_map.txt", "0 sky\n1 roads\n2 car\n"),
        "label_map.txt",
        ("line 2: 'roads'", "'road' for instance, or 'ignore'"),
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_data_stops_before_step_0(tmp_path, kind):
    root, workdir = make_folder(tmp_path / "data"), tmp_path / "run"
    case = BROKEN[kind]
    case.damage(root)
    config = get_experiment("fcn_r10-d8_16x16_1k_folder")
    config.dataset.root = str(root)
    with pytest.raises(DataError) as caught:
        train(config, workdir)
    text = str(caught.value)
    assert str(root / case.file) in text and all(part in text for part in case.parts), text
    assert "\n" not in text and not workdir.exists()  # one message, and nothing written


# --- check_data.py says the same ------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    return make_folder(tmp_path / "data")


def checked(root, **dataset):
    check_experiment(make_experiment(root=root, **dataset))


@pytest.mark.parametrize("name", ["all masks", "masks of val", "all ignored", "one class"])
def test_the_check_before_step_0_refuses_in_the_same_words(root, name):
    case = ERRORS[name]
    case.damage(root)
    (text,) = (problem.text for problem in report_on(root).problems if problem.kind == case.kind)
    with pytest.raises(DataError) as caught:
        checked(root)
    assert str(caught.value) == text and "\n" not in text


@pytest.mark.parametrize("values_", [(0,), (2,), (0, 255)])
def test_evaluation_labels_may_hold_one_class(root, values_):
    relabel(root, "val", *values_)
    checked(root)
    assert report_on(root).ok and {kind for kind, _ in kinds(report_on(root))} == {
        "absent from val"
    }


def test_masks_are_meant_where_nobody_said_what_255_is(root):
    two_classes(root)
    (root / "label_map.txt").write_text("0 sky\n1 road\n255 ignore\n")
    relabel(root, "val", 0, 255)
    checked(root)
    assert report_on(root).ok
    relabel(root, "train", 0, 255)
    with pytest.raises(DataError, match="hold one class only, 'sky' "):
        checked(root)


@pytest.mark.parametrize("train_values, refused", [((0, 1, 255), False), ((0, 255), True)])
def test_cityscapes_of_class_0_and_ignored(tmp_path, train_values, refused):
    for split, values in (("train", train_values), ("val", (0, 255))):
        image = np.full((8, 8, 3), len(split), np.uint8)
        write_png(tmp_path / f"leftImg8bit/{split}/a/a_1_leftImg8bit.png", image)
        label = np.resize(np.uint8(values), (8, 8))
        write_png(tmp_path / f"gtFine/{split}/a/a_1_gtFine_labelTrainIds.png", label)
    result = report_on(tmp_path, name="cityscapes")
    if not refused:
        assert result.ok
        checked(tmp_path, name="cityscapes")
        return
    assert ("one class", "train") in kinds(result)
    with pytest.raises(DataError) as caught:
        checked(tmp_path, name="cityscapes")
    assert "split 'train' hold one class only, 'road' (0), e.g. " in caught.value.problem
    assert caught.value.file == str(tmp_path / "gtFine/train/a")


def test_rules_for_a_whole_split_need_all_of_it(root, monkeypatch):
    label(root, "train/t0", 2)
    monkeypatch.setattr(checks, "CHECKED_WHOLE", 0)
    checked(root, check_samples=1)
    relabel(root, "train", 2)
    checked(root, check_samples=4)
    with pytest.raises(DataError, match="one class only, 'car'"):
        checked(root, check_samples=5)
    (root / "labels/train/t1.png").write_bytes(b"damaged")
    assert kinds(report_on(root)) == {("damaged label", "train"): 1}


def test_one_class_of_two_data_sets_is_enough(root, tmp_path):
    other = make_folder(tmp_path / "other", train=3)
    for one in (root, other):
        relabel(one, "train", 2)
        checked(root, concat=dict(more=dict(name="folder", root=str(other))))
        assert report_on(root, concat=dict(more=dict(name="folder", root=str(other)))).ok
        relabel(one, "train", 0, 1, 2)


def test_of_many_large_images_some_are_decoded(root, monkeypatch, caplog):
    caplog.set_level("INFO")
    cut_pixels(root)
    (root / "images/train/t2.png").write_bytes((root / "images/train/t2.png").read_bytes()[:-100])
    (root / "images/train/t0.jpg").rename(
        root / "images/train/t1.jpg"
    )  # of five the first, third and last are decoded
    (root / "images/train/t1.png").rename(root / "images/train/t0.png")
    monkeypatch.setattr(checks, "DECODED_PIXELS", 3 * 480)
    with pytest.raises(DataError) as error:
        checked(root)
    assert error.value.file == str(root / "images/train/t2.png")
    write_png(root / "images/train/t2.png", np.ones((20, 24, 3), np.uint8))
    checked(root)
    assert "decoded 3 images of split train, and read only the header" in caplog.text
    label(root, "train/t1", 9)
    with pytest.raises(DataError) as error:
        checked(root)
    assert error.value.file == str(root / "labels/train/t1.png")  # every label is read


def test_the_check_reads_everything_once(root, monkeypatch):
    reads = Counter()
    for method in ("read_decoded", "read_label"):
        original = getattr(FolderSource, method)
        monkeypatch.setattr(
            FolderSource,
            method,
            lambda self, i, m=method, f=original: reads.update([(m, self.files[i])]) or f(self, i),
        )
    find = open_module.find_pairs
    monkeypatch.setattr(
        open_module,
        "find_pairs",
        lambda spec, folder, split: reads.update([split]) or find(spec, folder, split),
    )
    checked(root)
    assert len(reads) == 2 * 7 + 2 and set(reads.values()) == {1}
