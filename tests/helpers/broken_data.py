"""Ways to break the folder of `make_folder`, and what check_data says of it.

Functions named with -ing return a function that breaks a given folder.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from helpers.data_helpers import write_png
from jaxseg.config.schema import DatasetConfig, EvalConfig, from_dict
from jaxseg.data import statistics
from jaxseg.data.catalog import load_spec
from jaxseg.data.validate.report import DataReport, check_data

Damage = Callable[[Path], None]
SIZE = (20, 24)
LARGE = (1000, 1100)  # more than a megapixel


def report_on(root, **dataset) -> DataReport:
    """The report of a data set, a `folder` unless it is named."""
    config = from_dict(DatasetConfig, dict(name="folder", root=str(root)) | dataset)
    return check_data(config, EvalConfig(), load_spec(config))


def kinds(report: DataReport) -> Counter:
    """The number of problems by (kind, split)."""
    return Counter((problem.kind, problem.split) for problem in report.problems)


# --- Breaking it ----------------------------------------------------------------------------------


def label(root, name, *values):
    """Write a label that holds these values."""
    dtype = np.uint16 if max(values) > 255 else np.uint8
    write_png(root / f"labels/{name}.png", np.resize(np.array(values), SIZE).astype(dtype))


def relabel(root, split, *values):
    """Write these values into every label of a split."""
    for file in sorted((root / "labels" / split).iterdir()):
        label(root, f"{split}/{file.stem}", *values)


def cut(file):
    """Keep the first bytes of a file."""
    file.write_bytes(file.read_bytes()[:200])


def stripes(size):
    """A label of the three classes."""
    return np.indices(size).sum(0, np.uint8) % 3


def cut_pixels(root, size=SIZE):
    """Make a training image a JPEG without its end."""
    file = root / "images/train/t0.jpg"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    write_png(root / "labels/train/t0.png", stripes(size))
    file.write_bytes(file.read_bytes()[:-100])
    (root / "images/train/t0.png").unlink()


def two_classes(root):
    """Have two classes instead of three."""
    (root / "classes.txt").write_text("sky\nroad\n")
    relabel(root, "train", 0, 1)
    relabel(root, "val", 0, 1)


def as_arrays(root, array):
    """Replace every image by this array."""
    for file in sorted(root.glob("images/*/*")):
        np.save(file.with_suffix(".npy"), array)
        file.unlink()


def _unknown_values(root):
    label(root, "train/t1", 0, 7)
    label(root, "val/v0", 0, 1, 2, 999)


def _nested(root):
    label(root, "train/a/x", 0, 1)
    label(root, "train/a/y", 0, 1)
    write_png(root / "images/train/a/x.png", np.ones((*SIZE, 3), np.uint8))


def _unknown_color(root):
    (root / "classes.txt").write_text("sky 10 20 30\nroad 40 50 60\ncar 70 80 90\n")
    table = np.uint8([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    for file in sorted(root.glob("labels/*/*")):
        write_png(file, table[np.arange(480).reshape(SIZE) % 3])
    write_png(root / "labels/train/t2.png", np.full((*SIZE, 3), (41, 50, 60), np.uint8))


def _five_channels(root):
    np.save(root / "images/train/t0.npy", np.zeros((*SIZE, 5), np.uint8))
    (root / "images/train/t0.png").unlink()


def _undeclared_nodata(root):
    image = np.linspace(0, 1, 20 * 24 * 3, dtype=np.float32).reshape(*SIZE, 3)
    as_arrays(root, image)
    image[0] = -9999
    np.save(root / "images/train/t2.npy", image)


def _nan(root, size=SIZE):
    as_arrays(root, np.zeros((*SIZE, 3), np.float32))
    image = np.zeros((*size, 3), np.float32)
    image[3, 4, 1] = np.nan
    write_png(root / "labels/val/v1.png", stripes(size))
    np.save(root / "images/val/v1.npy", image)


def _val_of_16_bits(root):
    for file in sorted(root.glob("images/val/*")):
        write_png(file, np.full((*SIZE, 3), len(file.stem), np.uint16))


def _shared_name(root):
    os.link(root / "images/train/t1.png", root / "images/train/t1.webp")


def _leak(root):
    shutil.copy(root / "images/train/t2.png", root / "images/val/v1.png")


def _no_split(root):
    shutil.rmtree(root / "images/val")


def removing(name: str) -> Damage:
    """Remove a file."""
    return lambda root: (root / name).unlink()


def cutting(name: str) -> Damage:
    """Keep the first bytes of a file."""
    return lambda root: cut(root / name)


def writing(name: str, text: str) -> Damage:
    """Write a text file."""
    return lambda root: (root / name).write_text(text)


def drawing(name: str, pixels: np.ndarray) -> Damage:
    """Write an image or a label."""
    return lambda root: write_png(root / name, pixels)


def labeling(name: str, *values: int) -> Damage:
    """Write a label that holds these values."""
    return lambda root: label(root, name, *values)


def relabeling(split: str, *values: int) -> Damage:
    """Write these values into every label of a split."""
    return lambda root: relabel(root, split, *values)


def summarising(mean: list, std: list) -> Damage:
    """Write statistics.json."""
    return lambda root: statistics.write_statistics(root, mean, std)


def doing(*damages: Damage) -> Damage:
    """Do several in a row."""

    def do(root):
        for damage in damages:
            damage(root)

    return do


# --- Cases ----------------------------------------------------------------------------------------


class Case(NamedTuple):
    """How a folder is broken, and the problems that check_data reports.

    Attributes:
        damage: Breaks the folder.
        kind: Key of `problems.KINDS`.
        split: The split.
        words: A part of the report.
        count: Number of problems of this kind and split.
    """

    damage: Damage
    kind: str
    split: str
    words: str
    count: int = 1


ERRORS = {
    "values": Case(_unknown_values, "value", "train", "t1.png: label value 7, 240 pixels"),
    "missing label": Case(
        removing("labels/train/t3.png"), "missing label", "train", "t3.png is missing; add it"
    ),
    "damaged image": Case(
        cutting("images/train/t0.png"),
        "damaged image",
        "train",
        "images/train/t0.png: cannot be read",
    ),
    "damaged pixels": Case(
        cut_pixels, "damaged image", "train", "images/train/t0.jpg: cannot be read"
    ),
    "large damaged pixels": Case(
        partial(cut_pixels, size=LARGE),
        "damaged image",
        "train",
        "images/train/t0.jpg: cannot be read as an image",
    ),
    "damaged label": Case(
        cutting("labels/train/t0.png"),
        "damaged label",
        "train",
        "labels/train/t0.png: cannot be read",
    ),
    "size": Case(
        drawing("labels/val/v1.png", np.zeros((10, 12), np.uint8)),
        "size",
        "val",
        "images/val/v1.png: is 24x20 (width x height) but its label",
    ),
    "all masks": Case(
        relabeling("train", 0, 255),
        "all masks",
        "train",
        "the labels of split 'train' hold only 0 and 255, e.g. ",
    ),
    "masks of val": Case(
        doing(two_classes, relabeling("val", 0, 255)),
        "all masks",
        "val",
        "split 'val' hold only 0 and 255, ",
    ),
    "all ignored": Case(
        relabeling("val", 255),
        "all ignored",
        "val",
        "the labels of split 'val' hold nothing but 255 ",
    ),
    "one class": Case(
        relabeling("train", 2),
        "one class",
        "train",
        "split 'train' hold one class only, 'car' (2), e.g. ",
    ),
    "colors": Case(
        _unknown_color, "color", "train", "t2.png: label colour (41, 50, 60), 480 pixels"
    ),
    "channels": Case(
        _five_channels,
        "channels",
        "train",
        "t0.npy: has 5 channels, but config.dataset.channels=3",
    ),
    "range": Case(
        _undeclared_nodata,
        "range",
        "train",
        "t2.npy: holds -9999 in 24 pixels of channel 0 (first at row 0, column 0)",
    ),
    "not finite": Case(
        _nan,
        "not finite",
        "val",
        "v1.npy: holds nan (1 values are NaN or infinite, the first at row 3, column 4",
    ),
    "large, not finite": Case(
        partial(_nan, size=LARGE), "not finite", "val", "v1.npy: holds nan (1 values"
    ),
    "statistics": Case(
        writing("statistics.json", "{"),
        "statistics",
        "train",
        "statistics.json: is not JSON (Expecting",
    ),
    "std 0": Case(
        summarising([1, 1, 1], [1, 0, 1]), "statistics", "train", "json: std 0.0 is not above 0"
    ),
    "statistics of 5": Case(
        summarising([1] * 5, [1] * 5),
        "statistics",
        "train",
        "5 channels, but config.dataset.channels=3",
    ),
    "dtype": Case(
        drawing("images/train/t4.png", np.zeros((*SIZE, 3), np.uint16)),
        "dtype",
        "train",
        "t4.png: uint16, where most images have uint8; save it",
    ),
    "dtype of val": Case(
        _val_of_16_bits,
        "dtype",
        "val",
        "v0.png: uint16, where most images have uint8; save it",
        count=2,
    ),
    "shared name": Case(
        _shared_name, "shared name", "train", "t1.png, so they would share one label; rename"
    ),
    "split": Case(_no_split, "split", "val", "images/val: no such folder; put the images"),
}
WARNINGS = {
    "unused label": Case(
        labeling("train/zebra", 0, 1),
        "unused label",
        "train",
        "zebra.png: not used; add its image, or give both one name",
    ),
    "unused label in a folder": Case(_nested, "unused label", "train", "a/y.png: not used"),
    "masks": Case(
        doing(two_classes, labeling("train/t1", 0, 255)),
        "masks",
        "train",
        "t1.png: holds only 0 and 255; 255 means",
    ),
    "ignored": Case(
        labeling("train/t1", 255),
        "ignored",
        "train",
        "t1.png: holds nothing but 255 (ignore); write",
    ),
    "not learned": Case(
        relabeling("train", 0, 1),
        "not learned",
        "train",
        "class 2 'car': only evaluation labels hold it",
    ),
    "absent from val": Case(
        relabeling("val", 0, 1),
        "absent from val",
        "val",
        "class 2 'car': no evaluation label holds it",
    ),
    "absent": Case(
        writing("classes.txt", "sky\nroad\ncar\nbus\n"),
        "absent",
        "train and val",
        "class 3 'bus': no label holds it",
    ),
    "mixed channels": Case(
        drawing("images/train/t4.png", np.zeros(SIZE, np.uint8)),
        "mixed channels",
        "train",
        "t4.png: 1 channels, where most images have 3 channels",
    ),
    "leak": Case(_leak, "leak", "val", "v1.png: the same image as"),
}
