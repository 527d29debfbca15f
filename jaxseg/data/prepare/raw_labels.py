"""Labels in the forms that data sets are distributed in: masks of 0 and 255, arrays in .mat files, colours. See official.py.

Every reader takes a file and its data set's spec, and gives class ids uint8 [H, W], 255 = ignore, or raises DataError.
"""

import dataclasses
import functools
import gzip
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.constants import IGNORE
from jaxseg.data.catalog import label_map
from jaxseg.data.decode.formats import UNREADABLE
from jaxseg.data.decode.labels import MEND_LABEL, UNKNOWN, decode_label, make_table, map_label
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError

Reader = Callable[[Path, DatasetSpec], np.ndarray]
Color = tuple[int, int, int]

STRAY = 0.01  # Official colour labels hold a few pixels of no colour of their table: up to this share is ignored, more is an error.
MEND = "take it from its archive again"
BLACK = (0, 0, 0)
# Ids of the 59 classes among the 459 of PASCAL Context's labels.txt, in the order of the classes.
CONTEXT_IDS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159, 162, 187,
    189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424,
    427, 440, 445, 454, 458,
)  # fmt: skip
# SegNet's 11 classes of CamVid's 32, in the order of the classes.
CAMVID_COLORS = (
    ((128, 128, 128),),
    (
        (128, 0, 0),
        (192, 0, 128),
        (0, 128, 64),
        (64, 0, 64),
        (64, 192, 0),
    ),  # Building, Archway, Bridge, Tunnel, Wall
    ((192, 192, 128), (0, 0, 64)),  # Column_Pole, TrafficCone
    ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # Road, LaneMkgsDriv, LaneMkgsNonDriv
    ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # Sidewalk, ParkingBlock, RoadShoulder
    ((128, 128, 0), (192, 192, 0)),  # Tree, VegetationMisc
    ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # SignSymbol, Misc_Text, TrafficLight
    ((64, 64, 128),),
    (
        (64, 0, 128),
        (64, 128, 192),
        (192, 128, 192),
        (192, 64, 128),
        (128, 64, 64),
    ),  # Car, SUVPickupTruck, Truck_Bus, Train, OtherMoving
    (
        (64, 64, 0),
        (192, 128, 64),
        (64, 0, 192),
        (64, 128, 64),
    ),  # Pedestrian, Child, CartLuggagePram, Animal
    ((0, 128, 192), (192, 0, 192)),  # Bicyclist, MotorcycleScooter
)


def read_bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {MEND}.") from None


def _read_pillow(file: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(read_bytes(file))) as label:
            return np.asarray(label.convert(mode))
    except UNREADABLE as error:
        raise (
            error
            if isinstance(error, DataError)
            else DataError(f"{file}: cannot be read as a label ({error}); {MEND_LABEL}.")
        ) from None


def read_mask(file: Path, spec: DatasetSpec) -> np.ndarray:
    """1 where a mask of 0 and 255 is bright."""
    mask = _read_pillow(file, "L")
    if 0 < mask.max() < 128:
        raise DataError(
            f"{file}: its largest value is {mask.max()}, but the official masks hold 0 and 255; {MEND}."
        )
    return (mask >= 128).astype(np.uint8)


def mat_ids(field: str, ids: Callable[[DatasetSpec], Mapping[int, int]]) -> Reader:
    """Reads the array `field` (of a struct: 'name.member') of a .mat file through a label map; a .png as the data set's own ids."""

    def read(file: Path, spec: DatasetSpec) -> np.ndarray:
        if file.suffix == ".png":
            return map_label(
                decode_label(read_bytes(file), file, spec), make_table(spec.label_map), spec, file
            )
        from scipy.io import loadmat  # JAX depends on SciPy, so it is always there

        data, (name, _, member) = read_bytes(file), field.partition(".")
        try:
            values = loadmat(io.BytesIO(data))[name]
            raw = np.asarray(values[member][0, 0] if member else values).astype(np.int32)
        except Exception as error:  # SciPy raises whatever its parsing runs into
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{file}: holds no array {field} of MATLAB ({reason}); {MEND}."
            ) from None
        table = ids(spec)
        return map_label(raw, make_table(table), dataclasses.replace(spec, label_map=table), file)

    return read


def colors(*ignored: Color, groups: tuple[tuple[Color, ...], ...] = ()) -> Reader:
    """Reads a colour label. groups: the colours of each class, by default the palette's one; `ignored` ones become 255."""

    def read(file: Path, spec: DatasetSpec) -> np.ndarray:
        classes = groups or tuple((color,) for color in spec.palette)
        rgb = _read_pillow(file, "RGB")
        codes = rgb[..., 0].astype(np.int32) << 16 | rgb[..., 1].astype(np.int32) << 8 | rgb[..., 2]
        label = _color_table(classes, ignored)[codes]
        stray = label == UNKNOWN
        count = int(stray.sum())
        if count:
            row, column = np.unravel_index(int(np.argmax(stray)), stray.shape)
            pixel = rgb[row, column].astype(int)
            near = min(
                (color for group in (*classes, ignored) for color in group),
                key=lambda color: np.abs(pixel - color).sum(),
            )
            where = f"{count} of {label.size} pixels have no colour of '{spec.name}', {tuple(pixel.tolist())} at row {row}, column {column}"
            if count > STRAY * label.size:
                raise DataError(
                    f"{file}: {where}; the nearest is {near}. It is damaged, or no label; {MEND}, or from another."
                )
            logging.getLogger(__name__).warning("%s: %s; they are ignored.", file, where)
        return np.where(stray, np.uint8(IGNORE), label)

    return read


@functools.cache
def _color_table(classes: tuple, ignored: tuple) -> np.ndarray:
    """Class id of each colour r << 16 | g << 8 | b."""
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for index, group in (*enumerate(classes), (IGNORE, ignored)):
        for r, g, b in group:
            table[r << 16 | g << 8 | b] = index
    return table


def context_ids(spec: DatasetSpec) -> dict[int, int]:
    """Whatever is none of the 59 classes is background, which is a class of the 60 and ignored by the 59."""
    rest, first = (0, 1) if spec.num_classes == 60 else (IGNORE, 0)
    return dict.fromkeys(range(460), rest) | {
        raw: index for index, raw in enumerate(CONTEXT_IDS, first)
    }


def coco_ids(spec: DatasetSpec) -> dict[int, int]:
    """The 10k set counts from 1, where 0 is unlabelled; the 164k set, whose map this is, from 0."""
    return {0: IGNORE} | {
        raw + 1: index for raw, index in label_map("coco_stuff_ids", spec.num_classes).items()
    }
