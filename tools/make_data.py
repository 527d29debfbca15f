"""Make the example data sets of docs/data.md.

    python tools/make_data.py --output=data [--copy=FOLDER]

They are `vessels` (binary masks) and `fields` (16 bits, 5 channels), drawn from a fixed seed.
--copy names a `folder` data set of class-number labels; data/colours becomes a copy of it with RGB
labels (in the default palette of its classes).
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from jaxseg.data.catalog import get_spec
from jaxseg.data.folder_spec import default_palette

COUNTS = {"vessels": {"train": 12, "val": 4}, "fields": {"train": 24, "val": 6}}
# Reflectances in five bands of soil, crop, water and building.
SPECTRA = np.array(
    [
        [900, 1200, 800, 3000, 2000],
        [600, 900, 700, 6000, 2500],
        [300, 500, 200, 300, 100],
        [2500, 2600, 2700, 3000, 3500],
    ]
)

Pair = tuple[np.ndarray, np.ndarray]  # image and label


def draw_vessels(rng: np.random.Generator, size: int = 256) -> Pair:
    """Draw an eye's background with branching vessels.

    Returns:
        RGB uint8 [size, size, 3], and a mask of 0 and 255, uint8 [size, size].
    """
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(y - size / 2, x - size / 2)
    image = np.array([200.0, 110.0, 60.0]) * (1 - 0.5 * radius / size)[..., None]
    mask = np.zeros((size, size), np.uint8)

    def branch(point: np.ndarray, angle: float, width: float, steps: int) -> None:
        for _ in range(steps):
            angle += rng.normal(0, 0.12)
            end = point + 6 * np.array([np.cos(angle), np.sin(angle)])
            corners = point.astype(int).tolist(), end.astype(int).tolist()
            cv2.line(mask, *corners, 255, max(1, int(width)))
            point, width = end, width * 0.985
            if rng.random() < 0.06 and width > 2:
                branch(point, angle + rng.choice([-0.6, 0.6]), width * 0.7, steps // 2)

    for _ in range(5):
        start = size * np.array([0.3, 0.5]) + rng.normal(0, 10, 2)
        branch(start, rng.uniform(-1.3, 1.3) + rng.choice([0, np.pi]), rng.uniform(4, 8), 45)
    image[mask > 0] *= 0.62
    image = cv2.GaussianBlur(image, (0, 0), 1) + rng.normal(0, 6, image.shape)
    outside = radius > size * 0.49
    image[outside] = 0
    mask[outside] = 0
    return np.clip(image, 0, 255).astype(np.uint8), mask


def draw_fields(rng: np.random.Generator, size: int = 160) -> Pair:
    """Draw rectangles of four kinds of ground from above.

    Returns:
        uint16 [size, size, 5], and class numbers uint8 [size, size].
    """
    label = np.zeros((size, size), np.uint8)
    for _ in range(8):
        (top, left), (height, width) = rng.integers(0, size, 2), rng.integers(25, 70, 2)
        label[top : top + height, left : left + width] = rng.integers(0, 4)
    image = SPECTRA[label] * rng.uniform(0.8, 1.2) + rng.normal(0, 300, (size, size, 5))
    return np.clip(image * 4, 0, 65535).astype(np.uint16), label


def make_vessels(root: Path) -> None:
    """Write the data set of vessels."""
    for split, name, (image, mask) in _samples(root, "vessels", draw_vessels):
        Image.fromarray(image).save(root / "images" / split / f"{name}.png")
        Image.fromarray(mask).save(root / "labels" / split / f"{name}.png")
    (root / "classes.txt").write_text("background\nvessel\n")
    (root / "label_map.txt").write_text("0 background\n255 vessel\n")


def make_fields(root: Path) -> None:
    """Write the data set of fields."""
    for split, name, (image, label) in _samples(root, "fields", draw_fields):
        tifffile.imwrite(
            root / "images" / split / f"{name}.tif",
            image,
            photometric="minisblack",
            planarconfig="contig",
            compression="zlib",
        )
        Image.fromarray(label).save(root / "labels" / split / f"{name}.png")
    (root / "classes.txt").write_text("soil\ncrop\nwater\nbuilding\n")


def _samples(
    root: Path, kind: str, draw: Callable[[np.random.Generator], Pair]
) -> Iterator[tuple[str, str, Pair]]:
    """(split, name, pair) of all samples; makes the folders."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS[kind].items():
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            yield split, f"{kind[:-1]}{number:02d}", draw(rng)


def make_colours(source: Path, root: Path) -> None:
    """Copy a `folder` with RGB labels, ignored pixels black."""
    classes = get_spec("folder", source).classes
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = default_palette(len(classes))
    shutil.copytree(source / "images", root / "images", dirs_exist_ok=True)
    for file in source.glob("labels/*/*.png"):
        copy = root / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(table[np.asarray(Image.open(file))]).save(copy)
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(classes, table.tolist())]
    (root / "classes.txt").write_text("\n".join([*lines, "ignore 0 0 0", ""]))


def main(argv: list[str]) -> None:
    """Make the data sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("data"))
    parser.add_argument("--copy", type=Path, help="a `folder` data set to copy with RGB labels")
    args = parser.parse_args(argv)
    make_vessels(args.output / "vessels")
    make_fields(args.output / "fields")
    if args.copy:
        make_colours(args.copy, args.output / "colours")


if __name__ == "__main__":
    main(sys.argv[1:])
