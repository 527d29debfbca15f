"""Every way in which people's data sets are broken stops training before step 0, with one message: file, value, fix."""

import os

import cv2
import numpy as np
import pytest
from data_helpers import make_folder, write_png
from PIL import Image

from jaxseg.config import get_experiment
from jaxseg.data.datasets import DataError
from jaxseg.train import train

LABEL, IMAGE = "labels/train/t2.png", "images/train/t2.png"


def labels(root, change):
    """Change the pixels of every label."""
    for file in (root / "labels").glob("*/*.png"):
        write_png(file, change(np.asarray(Image.open(file))))


def value_outside(root):
    label = np.zeros((20, 24), np.uint8)
    label[3, 5:8] = 7
    write_png(root / LABEL, label)


def colour_outside(root):
    (root / "classes.txt").write_text("sky 0 0 255\nroad 128 64 128\ncar 255 0 0\nvoid 9 9 9\n")
    table = np.full((256, 3), 9, np.uint8)
    table[:3] = (0, 0, 255), (128, 64, 128), (255, 0, 0)
    labels(root, lambda ids: table[ids])
    label = np.asarray(Image.open(root / LABEL)).copy()
    label[4, 6] = (127, 64, 128)
    write_png(root / LABEL, label)


def truncated_jpeg(root):
    (root / IMAGE).unlink()
    file = (root / IMAGE).with_suffix(".jpg")
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    file.write_bytes(file.read_bytes()[:-200])


def not_a_number(root):
    for file in (root / "images").glob("*/*.png"):
        np.save(file.with_suffix(".npy"), np.asarray(Image.open(file), np.float32))
        file.unlink()
    image = np.zeros((20, 24, 3), np.float32)
    image[5, 6, 1] = np.nan
    np.save((root / IMAGE).with_suffix(".npy"), image)


def empty_split(root):
    for file in (root / "images/val").iterdir():
        file.unlink()


def same_name(root):
    os.link(root / IMAGE, root / "images/train/t2.webp")


# Kind -> (what is done to a sound folder, what the message tells: file, value, fix).
BROKEN = {
    "no class list": (lambda root: (root / "classes.txt").unlink(), ("classes.txt: no such file", "write the class names into it")),
    "class twice": (lambda root: (root / "classes.txt").write_text("sky\nroad\nsky\n"), ("classes.txt, line 1", "'sky'", "names must differ")),
    "no images": (empty_split, ("images/val: no image of split 'val'", "it is empty", "expected files .jpg")),
    "no label": (lambda root: (root / LABEL).unlink(), (IMAGE, f"{LABEL} is missing", "add it, or take the image out")),
    "other size": (lambda root: write_png(root / LABEL, np.eye(20, 23, dtype=np.uint8)),
                   (f"{IMAGE} is 24x20", f"{LABEL} is 23x20", "make them equally large")),
    "value outside": (value_outside, (f"{LABEL}: label value 7, 3 pixels, first at row 3, column 5", "change the value, to 255")),
    "colours undeclared": (lambda root: labels(root, lambda ids: np.stack([ids] * 3, -1)),
                           ("labels/train/t0.png: a label of mode RGB", "declare colours in classes.txt")),
    "colour outside": (colour_outside, (f"{LABEL}: label colour (127, 64, 128), 1 pixels, first at row 4, column 6",
                                        "the nearest is (128, 64, 128), 'road'. Correct the label or the table")),
    "damaged image": (lambda root: (root / IMAGE).write_bytes(b"\x89PNG nothing"), (f"{IMAGE}: cannot be read as an image", "replace it")),
    "truncated image": (truncated_jpeg, ("images/train/t2.jpg: cannot be read as an image", "truncated", "replace it")),
    "damaged label": (lambda root: (root / LABEL).write_bytes(b"\x89PNG"), (f"{LABEL}: cannot be read as a label", "replace it")),
    "masks of 0 and 255": (lambda root: labels(root, lambda ids: (ids == 1) * np.uint8(255)),
                           ("labels/train: ", "hold only 0 and 255, e.g. ", "t0.png", "write 1 instead of 255", "label_map.txt")),
    "ignored throughout": (lambda root: labels(root, lambda ids: np.full_like(ids, 255)),
                           ("labels/train: ", "nothing but 255 (ignore), e.g. ", "write class numbers into them")),
    "one class": (lambda root: labels(root, lambda ids: np.ones_like(ids)), ("hold one class only, 'road' (1), e.g. ", "correct the values")),
    "16 bits among 8": (lambda root: write_png(root / IMAGE, np.ones((20, 24, 3), np.uint16)),
                        (f"{IMAGE}: an image of uint16", "is uint8", "save all images of a data set alike")),
    "other channels": (lambda root: np.save(root / "images/train/t9.npy", np.ones((20, 24, 5), np.uint8)) or
                       write_png(root / "labels/train/t9.png", np.eye(20, 24, dtype=np.uint8)),
                       ("images/train/t9.npy: has 5 channels", "config.dataset.channels=5 if all images are like this")),
    "not a number": (not_a_number, ("images/train/t2.npy: holds nan", "row 5, column 6, channel 1", "write a number there")),
    "one name twice": (same_name, ("t2.png and ", "t2.webp have one name", "rename or remove one")),
    "label map": (lambda root: (root / "label_map.txt").write_text("0 sky\n1 roads\n2 car\n"),
                  ("label_map.txt, line 2: 'roads' is no class of classes.txt", "'road' for instance, or 'ignore'")),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_data_stops_before_step_0(tmp_path, kind):
    root, workdir = make_folder(tmp_path / "data"), tmp_path / "run"
    spoil, parts = BROKEN[kind]
    spoil(root)
    config = get_experiment("fcn_r10-d8_16x16_1k_folder")
    config.dataset.root = str(root)
    with pytest.raises(DataError) as caught:
        train(config, workdir)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value) and not workdir.exists()  # one message, and nothing written
