"""Tiny data sets and configs for the tests of the data room."""

from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxseg.config.defaults import DATASET, EVALUATION


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write an image or label losslessly (as the suffix says), with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def make_folder(root: Path, train: int = 5, val: int = 2, size: tuple[int, int] = (20, 24)) -> Path:
    """A `folder` data set of 3 classes: images t0, t1, ... and v0, v1, ..., random, labels with 255 as well."""
    rng = np.random.default_rng(0)
    for split, letter, count in (("train", "t", train), ("val", "v", val)):
        for index in range(count):
            write_png(
                root / f"images/{split}/{letter}{index}.png",
                rng.integers(0, 256, (*size, 3), np.uint8),
            )
            write_png(
                root / f"labels/{split}/{letter}{index}.png",
                rng.choice([0, 1, 2, 255], size).astype(np.uint8),
            )
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    return root


def make_config(
    name: str = "folder", root: str = "", batch_size: int = 4, seed: int = 3, **dataset
) -> ConfigDict:
    """What the data room reads of a config."""
    dataset = DATASET | dict(name=name, root=root, crop_size=(16, 20), dtype="uint8") | dataset
    return ConfigDict(dict(seed=seed, batch_size=batch_size, dataset=dataset, eval=EVALUATION))
