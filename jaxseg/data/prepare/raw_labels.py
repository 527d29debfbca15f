"""Readers of labels in official releases: masks of 0 and 255, arrays in .mat files, colours.

A reader takes a file and the spec of its data set, and returns class ids uint8 [H, W], 255 =
ignore. It raises DataError for a file that it cannot read.
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
from scipy.io import loadmat

from jaxseg.constants import IGNORE
from jaxseg.data.builtin import named_label_map
from jaxseg.data.decode.formats import UNREADABLE
from jaxseg.data.decode.labels import MEND_LABEL, UNKNOWN, decode_label, make_table, map_label
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError

Reader = Callable[[Path, DatasetSpec], np.ndarray]
Color = tuple[int, int, int]

log = logging.getLogger(__name__)

# Official colour labels contain a few pixels of undeclared colours: up to this share is ignored,
# more is an error.
MAX_STRAY_SHARE = 0.01
UNPACK_AGAIN = "unpack it from its archive again"
BLACK = (0, 0, 0)
# Ids of the 59 classes among the 459 of PASCAL Context's labels.txt, in the order of the classes.
# fmt: off
CONTEXT_IDS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on
# SegNet's 11 classes of CamVid's 32, in the order of the classes.
CAMVID_COLORS: tuple[tuple[Color, ...], ...] = (
    # Sky
    ((128, 128, 128),),
    # Building, Archway, Bridge, Tunnel, Wall
    ((128, 0, 0), (192, 0, 128), (0, 128, 64), (64, 0, 64), (64, 192, 0)),
    # Column_Pole, TrafficCone
    ((192, 192, 128), (0, 0, 64)),
    # Road, LaneMkgsDriv, LaneMkgsNonDriv
    ((128, 64, 128), (128, 0, 192), (192, 0, 64)),
    # Sidewalk, ParkingBlock, RoadShoulder
    ((0, 0, 192), (64, 192, 128), (128, 128, 192)),
    # Tree, VegetationMisc
    ((128, 128, 0), (192, 192, 0)),
    # SignSymbol, Misc_Text, TrafficLight
    ((192, 128, 128), (128, 128, 64), (0, 64, 64)),
    # Fence
    ((64, 64, 128),),
    # Car, SUVPickupTruck, Truck_Bus, Train, OtherMoving
    ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
    # Pedestrian, Child, CartLuggagePram, Animal
    ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),
    # Bicyclist, MotorcycleScooter
    ((0, 128, 192), (192, 0, 192)),
)


def read_bytes(file: Path) -> bytes:
    """Read a file, decompressed if its suffix is .gz.

    Raises:
        DataError: It cannot be read.
    """
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise DataError(f"cannot be read ({error})", file=file, hint=UNPACK_AGAIN) from None


def _read_pillow(file: Path, mode: str) -> np.ndarray:
    """Read the pixels of an image file in a mode of Pillow's."""
    try:
        with Image.open(io.BytesIO(read_bytes(file))) as label:
            return np.asarray(label.convert(mode))
    except DataError:
        raise
    except UNREADABLE as error:
        problem = f"cannot be read as a label ({error})"
        raise DataError(problem, file=file, hint=MEND_LABEL) from None


def read_mask(file: Path, spec: DatasetSpec) -> np.ndarray:
    """Read a mask of 0 and 255 as classes 0 and 1.

    Args:
        file: The mask.
        spec: Its data set.

    Returns:
        uint8 [H, W].

    Raises:
        DataError: It cannot be read, or is darker than such a mask.
    """
    mask = _read_pillow(file, "L")
    if 0 < mask.max() < 128:
        raise DataError(
            f"its largest value is {mask.max()}, but the official masks hold 0 and 255",
            file=file,
            hint=UNPACK_AGAIN,
        )
    return (mask >= 128).astype(np.uint8)


def mat_reader(field: str, ids: Callable[[DatasetSpec], Mapping[int, int]]) -> Reader:
    """Make a reader of .mat files; it reads .png files as labels of the data set's own ids.

    Args:
        field: Name of the array; 'name.member' for a member of a struct.
        ids: Returns the label map of the array.
    """

    def read(file: Path, spec: DatasetSpec) -> np.ndarray:
        if file.suffix == ".png":
            raw = decode_label(read_bytes(file), file, spec)
            return map_label(raw, make_table(spec.label_map), spec, file)
        raw = _read_mat(file, field)
        table = ids(spec)
        return map_label(raw, make_table(table), dataclasses.replace(spec, label_map=table), file)

    return read


def _read_mat(file: Path, field: str) -> np.ndarray:
    """Read an array of a .mat file as int32."""
    data = read_bytes(file)
    name, _, member = field.partition(".")
    try:
        values = loadmat(io.BytesIO(data))[name]
        return np.asarray(values[member][0, 0] if member else values).astype(np.int32)
    except Exception as error:  # SciPy raises whatever its parsing runs into
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"contains no MATLAB array {field} ({reason})", file=file, hint=UNPACK_AGAIN
        ) from None


def color_reader(*ignored: Color, groups: tuple[tuple[Color, ...], ...] = ()) -> Reader:
    """Make a reader of colour labels.

    Args:
        ignored: Colours that become 255.
        groups: The colours of each class; by default the one of the palette.
    """

    def read(file: Path, spec: DatasetSpec) -> np.ndarray:
        classes = groups or tuple((color,) for color in spec.palette)
        rgb = _read_pillow(file, "RGB")
        codes = rgb[..., 0].astype(np.int32) << 16 | rgb[..., 1].astype(np.int32) << 8 | rgb[..., 2]
        label = _color_table(classes, ignored)[codes]
        stray = label == UNKNOWN
        if stray.any():
            colors = [color for group in (*classes, ignored) for color in group]
            _check_stray_colors(file, spec, rgb, stray, colors)
        return np.where(stray, np.uint8(IGNORE), label)

    return read


def _check_stray_colors(
    file: Path, spec: DatasetSpec, rgb: np.ndarray, stray: np.ndarray, colors: list[Color]
) -> None:
    """Log pixels of undeclared colours, or raise DataError if there are many.

    Args:
        file: The label.
        spec: Its data set.
        rgb: Its pixels, uint8 [H, W, 3].
        stray: Which of them have an undeclared colour, bool [H, W].
        colors: The declared colours.
    """
    count = int(stray.sum())
    row, column = np.unravel_index(int(np.argmax(stray)), stray.shape)
    pixel = rgb[row, column].astype(int)
    where = (
        f"{count} of {stray.size} pixels have no colour of '{spec.name}', {tuple(pixel.tolist())} "
        f"at row {row}, column {column}"
    )
    if count > MAX_STRAY_SHARE * stray.size:
        nearest = min(colors, key=lambda color: np.abs(pixel - color).sum())
        raise DataError(
            f"{where}; the nearest is {nearest}",
            file=file,
            hint=f"it is damaged, or not a label: {UNPACK_AGAIN}, or from another archive",
        )
    log.warning("%s: %s; they are ignored", file, where)


@functools.cache
def _color_table(classes: tuple[tuple[Color, ...], ...], ignored: tuple[Color, ...]) -> np.ndarray:
    """Return the class id of each colour r << 16 | g << 8 | b: uint8 [2**24]."""
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for index, group in (*enumerate(classes), (IGNORE, ignored)):
        for r, g, b in group:
            table[r << 16 | g << 8 | b] = index
    return table


def context_ids(spec: DatasetSpec) -> dict[int, int]:
    """Return the label map of PASCAL Context's 459 classes.

    Those that are not among the 59 are background, which is a class of `pascal_context` and ignored
    by `pascal_context_59`.
    """
    rest, first = (0, 1) if spec.num_classes == 60 else (IGNORE, 0)
    ids = {raw: index for index, raw in enumerate(CONTEXT_IDS, first)}
    return dict.fromkeys(range(460), rest) | ids


def coco_ids(spec: DatasetSpec) -> dict[int, int]:
    """Return the label map of COCO-Stuff 10K.

    It counts from 1, and 0 is unlabelled; COCO-Stuff 164K counts from 0.
    """
    ids = named_label_map("coco_stuff_ids", spec.num_classes)
    return {0: IGNORE} | {raw + 1: index for raw, index in ids.items()}
