"""Labels as the numbers that their files store, never as pictures, and label maps applied to them.

One rule for all formats: a label's value is what a GIS program shows as the band's value. Nothing is inverted, turned,
stretched or coloured. RGB is read where a data set declares colours. Whatever is wrong is a DataError naming the file.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import UnidentifiedImageError

from jaxseg.constants import IGNORE
from jaxseg.data.decode import tiff as tiffs
from jaxseg.data.decode.formats import (
    PNG,
    UNREADABLE,
    check_pixels,
    count_frames,
    lossy_coding,
    open_picture,
    tell_format,
)
from jaxseg.data.decode.images import MAX_PIXELS, Decoded, load_npy
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError

UNKNOWN = 254  # what ids outside the label map become, until they are reported
MISSING = -(
    2**62
)  # what pixels become that their file says to hold no data: no label value is so low
DENSE = 65536  # label values below are looked up by index
MEND_LABEL = "replace it, or remove it and its image"
SAVE_NUMBERS = "save one class number a pixel, as a single-channel or palette PNG: 0 for the first class, 255 to ignore"


class Stored(NamedTuple):
    """What a label file stores.

    Attributes:
        values: [H, W] numbers, or [H, W, C] colours.
        what: the file's own word for its type, for messages: "PNG of mode RGB".
        palette: uint8 [N, 3] colours of the values, where these are indices.
        nodata: the value that the file declares to be no data, or None.
        data: bool [H, W], False where the file's own mask says that there are no data, or None.
    """

    values: np.ndarray
    what: str
    palette: np.ndarray | None = None
    nodata: float | None = None
    data: np.ndarray | None = None


# --- Reading what is stored -------------------------------------------------------------------------------------------


def _read_npy(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    values = load_npy(io.BytesIO(data), file)
    return Stored(_one_band(values), f"array {values.shape} of {values.dtype}")


def _read_tiff(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    with tiffs.open_tiff(data, file) as opened:
        header = opened.header
        if coding := opened.lossy():
            raise _lossy(file, f"{coding} (in a TIFF)")
        check_pixels(
            header.shape[:2] if header.axes[-1:] == "S" else header.shape[-2:], file, max_pixels
        )
        return Stored(
            _one_band(opened.read()),
            f"TIFF of {tiffs.describe(header)}",
            header.palette,
            header.nodata,
            opened.mask(),
        )


def _read_picture(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    try:
        with open_picture(data, tell_format(data)) as image:
            check_pixels(image.size[::-1], file, max_pixels)
            if (frames := count_frames(image)) > 1:
                raise DataError(
                    f"is a label of {frames} pictures, shape {(frames, *image.size[::-1])}, not one class id a pixel",
                    file=file, hint=SAVE_NUMBERS,
                )  # fmt: skip
            values, what = np.asarray(image), f"{image.format} of mode {image.mode}"
            palette = image.getpalette("RGB") if image.mode == "P" else None
    except UNREADABLE as error:
        if isinstance(error, DataError):
            raise
        reason = (
            "cut short, or a variant that nobody knows"
            if isinstance(error, UnidentifiedImageError)
            else error
        )
        raise DataError(
            f"cannot be read as a label ({tell_format(data)}: {reason})", file=file, hint=MEND_LABEL
        ) from None
    if data[:8] == PNG and data[24] in (1, 2, 4) and data[25] == 0 and values.dtype == np.uint8:
        values = values // (
            255 // (2 ** data[24] - 1)
        )  # Pillow stretches grey values of few bits over 0..255
    if data[:8] == PNG and data[24] == 16 and data[25] in (2, 4, 6):
        raise DataError(
            f"is a label of 16 bits in several channels ({what})", file=file, hint=SAVE_NUMBERS
        )
    return Stored(
        values, what, None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
    )


def _one_band(values: np.ndarray) -> np.ndarray:
    """Without an axis of length 1 that stands for the only band or page: [1, H, W] and [H, W, 1] are [H, W]."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        return values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _lossy(file: str | Path, what: str) -> DataError:
    return DataError(
        f"is compressed as {what}: its numbers may no longer be those that were drawn", file=file,
        hint="save labels without loss, as PNG, from the original",
    )  # fmt: skip


READERS: dict[str, Callable[[bytes, str | Path, int], Stored]] = {
    "NPY": _read_npy, "TIFF": _read_tiff, "PNG": _read_picture, "BMP": _read_picture, "GIF": _read_picture,
    "WebP": _read_picture,
}  # fmt: skip


def _read_stored(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    kind = tell_format(data)
    if kind in READERS:
        if kind == "WebP" and lossy_coding(data):
            raise _lossy(file, lossy_coding(data))
        return READERS[kind](data, file, max_pixels)
    if kind in ("JPEG", "JPEG 2000") or lossy_coding(data):
        raise _lossy(file, lossy_coding(data) or kind)
    what = kind or ("an empty file" if not data else "no known format")
    raise DataError(
        f"cannot be read as a label ({what})", file=file, hint=f"{SAVE_NUMBERS}; or take it out"
    )


# --- Numbers and colours ----------------------------------------------------------------------------------------------


def decode_label(
    data: bytes, file: str | Path, spec: DatasetSpec, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The numbers or colours of an encoded label.

    Args:
        data: the file's bytes; PNG, TIFF, BMP, GIF, NPY or lossless WebP.
        file: for messages only.
        spec: the data set; its `colors` allow RGB, and say how a palette is read.
        max_pixels: the most pixels a label may have, 0 for any number.

    Returns:
        Raw ids [H, W], uint8 or uint16, or int64 where these do not suffice, with `MISSING` where the file says that it holds no
        data; or RGB uint8 [H, W, 3] of a colour label.

    Raises:
        DataError: it cannot be read, was compressed with loss, or holds neither one whole number a pixel nor declared
            colours.
    """
    stored = _read_stored(data, file, max_pixels)
    if stored.palette is not None and spec.colors:
        return _palette_colors(stored, file, spec)
    values = stored.values
    if values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8 and spec.colors:
        return values[..., :3]
    if values.ndim == 3 and values.shape[2] in (3, 4) and spec.name == "folder":
        raise DataError(
            f"is a label of {values.shape[2]} channels ({stored.what}), not one class number a pixel", file=file,
            hint="declare colours in classes.txt, one line a class: `road 128 64 128`, or save class numbers "
            "(single-channel or palette PNG)",
        )  # fmt: skip
    if values.ndim != 2:
        raise DataError(
            f"is a label of shape {values.shape} ({stored.what}), not one class id a pixel",
            file=file,
            hint=SAVE_NUMBERS,
        )
    missing = _missing(stored, file, spec)
    ids = _whole_numbers(values, stored.what, file, missing)
    if missing is None:
        return ids
    ids = ids.astype(np.int64)
    ids[missing] = MISSING
    return ids


def _whole_numbers(
    values: np.ndarray, what: str, file: str | Path, missing: np.ndarray | None
) -> np.ndarray:
    """Numbers of any type as uint8 or int64, if they are whole."""
    if not values.size:
        raise DataError(
            f"holds no pixels, shape {values.shape} ({what})", file=file, hint=MEND_LABEL
        )
    if values.dtype in (np.uint8, bool):
        return values.astype(np.uint8)
    if values.dtype == np.uint16:
        return values.astype(np.uint16)  # in this machine's byte order
    if values.dtype.kind in "iu":
        if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
            raise DataError(
                f"holds {values.max()} ({what}), which is no label value",
                file=file,
                hint=SAVE_NUMBERS,
            )
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise DataError(
            f"holds values of {values.dtype} ({what}), which are no class numbers",
            file=file,
            hint=SAVE_NUMBERS,
        )
    if missing is not None:
        values = np.where(missing, values.dtype.type(0), values)
    with np.errstate(invalid="ignore"):
        limit = min(2.0**62, float(np.finfo(values.dtype).max))
        wrong = ~(np.abs(values) <= limit) | (values != np.floor(values))  # also what is no number
    if wrong.any():
        row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise DataError(
            f"holds {values[row, column]} at row {row}, column {column} ({np.count_nonzero(wrong)} such pixels; {what}), "
            "which is no whole number", file=file, hint=SAVE_NUMBERS,
        )  # fmt: skip
    return values.astype(np.int64)


def _missing(stored: Stored, file: str | Path, spec: DatasetSpec) -> np.ndarray | None:
    """bool [H, W], where the file says that there are no data; None if it does not.

    A no-data value that label_map.txt lists is what is said there. One that is a class by default would be ignored
    against the user's idea or trained against the file's, so the user has to say which.
    """
    missing = None if stored.data is None or stored.data.all() else ~stored.data
    if stored.nodata is None:
        return missing
    found = tiffs.equals_nodata(stored.values, stored.nodata)
    index = _index_of(int(stored.nodata), spec) if float(stored.nodata).is_integer() else None
    if not found.any() or (index is not None and spec.explicit_map):
        return missing
    if index not in (None, IGNORE):
        name = spec.classes[index]
        raise DataError(
            f"declares {stored.nodata:g} to be its no-data value (GDAL_NODATA), which is also the number of class '{name}' "
            f"({np.count_nonzero(found)} pixels)", file=file,
            hint=f"say in label_map.txt what is meant, `{stored.nodata:g} ignore` or `{stored.nodata:g} {name}`, with the "
            "lines of the other classes",
        )  # fmt: skip
    return found if missing is None else missing | found


def _index_of(value: int, spec: DatasetSpec) -> int | None:
    """The class, or 255, that a value stands for; None if the map lacks it."""
    ranges = (index for first, last, index in spec.label_ranges if first <= value <= last)
    return spec.label_map.get(value, next(ranges, None))


def _palette_colors(stored: Stored, file: str | Path, spec: DatasetSpec) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an indexed label, whose colours must be those declared: else its indices are meant."""
    used = np.unique(stored.values.astype(np.intp))
    declared = set(spec.colors) | set(spec.ignored_colors)
    colors = {
        int(i): tuple(int(v) for v in stored.palette[i]) for i in used if i < len(stored.palette)
    }
    strange = [index for index in used.tolist() if colors.get(index) not in declared]
    if not strange:
        return stored.palette[stored.values.astype(np.intp)]
    index = strange[0]
    fits = all(i == IGNORE or _index_of(i, spec) is not None for i in used.tolist())
    numbers = f"its indices {', '.join(map(str, used.tolist()[:8]))} {'are' if fits else 'are not all'} class numbers"
    raise DataError(
        f"is a palette label whose index {index} ({np.count_nonzero(stored.values == index)} pixels) has the colour "
        f"{colors.get(index, 'of no entry')}, which classes.txt does not declare; {numbers}", file=file,
        hint="take the colours out of classes.txt to have the indices read as class numbers" if fits else
        "declare this colour in classes.txt, or save class numbers",
    )  # fmt: skip


# --- Label maps -------------------------------------------------------------------------------------------------------


class LabelTable(NamedTuple):
    """A label map for arrays: class ids of small values by index, of all by ranges.

    Attributes:
        dense: uint8 [N], of values by index, `UNKNOWN` for those that the map lacks; the last entry stands for all beyond.
        first, last: int64 [N], ranges of values, ascending.
        index: uint8 [N], the class id of each range, or 255.
    """

    dense: np.ndarray
    first: np.ndarray
    last: np.ndarray
    index: np.ndarray


def make_table(ids: Mapping[int, int], ranges: Sequence[tuple[int, int, int]] = ()) -> LabelTable:
    """The table of a label map {raw id: class id or 255} and of further (first, last, class id or 255) ranges.

    255 is 255 unless mapped, and so is what files declare to be no data.
    """
    implied = (
        ()
        if any(first <= IGNORE <= last for first, last, _ in ranges) or IGNORE in ids
        else ((IGNORE, IGNORE, IGNORE),)
    )
    found = sorted(
        [
            *((raw, raw, index) for raw, index in ids.items()),
            *ranges,
            *implied,
            (MISSING, MISSING, IGNORE),
        ]
    )
    size = min(max(256, *(last + 1 for _, last, _ in found)), DENSE)
    dense = np.full(size + 1, UNKNOWN, np.uint8)
    for first, last, index in found:
        dense[max(first, 0) : max(min(last + 1, size), 0)] = index
    first, last, index = zip(*found, strict=True)
    return LabelTable(
        dense, np.array(first, np.int64), np.array(last, np.int64), np.array(index, np.uint8)
    )


def look_up(ids: np.ndarray, table: LabelTable) -> np.ndarray:
    """Class ids uint8 [H, W] of raw ids [H, W]; `UNKNOWN` where the map has none."""
    if ids.dtype == np.uint8:
        return cv2.LUT(ids, table.dense[:256])
    beyond = len(table.dense) - 1
    if ids.dtype == np.uint16:
        return table.dense[ids if beyond == DENSE else np.minimum(ids, np.uint16(beyond))]
    inside = (ids >= 0) & (ids < beyond)
    label = table.dense[np.where(inside, ids, 0)]
    if not inside.all():
        rest = ids[~inside]
        place = (
            np.searchsorted(table.first, rest, "right") - 1
        )  # at least 0, as no value lies below MISSING
        place = np.maximum(place, 0)
        known = (rest >= table.first[place]) & (rest <= table.last[place])
        label[~inside] = np.where(known, table.index[place], np.uint8(UNKNOWN))
    return label


def map_label(
    ids: np.ndarray, table: LabelTable, spec: DatasetSpec, file: str | Path
) -> np.ndarray:
    """Class ids of a label as it was decoded.

    Args:
        ids: what `decode_label` gave.
        table: of the file's label map, from `make_table`.
        spec: the data set.
        file: for messages only.

    Returns:
        uint8 [H, W] of classes and 255.

    Raises:
        DataError: a value or a colour is unknown; says which, where, and how often.
    """
    if ids.ndim == 3:
        return _map_colors(ids, spec, file)
    label = look_up(ids, table)
    wrong = label == UNKNOWN
    if not wrong.any():
        return label
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    value = int(ids[row, column])
    count, others = (
        int((ids == value).sum()),
        sorted({int(v) for v in np.unique(ids[wrong])} - {value}),
    )
    more = f" (and other such values: {', '.join(map(str, others[:8]))})" if others else ""
    known = [
        *spec.label_map.items(),
        *((raw, index) for first, last, index in spec.label_ranges for raw in (first, last)),
    ]
    known = sorted(raw for raw, index in known if index != IGNORE)
    say = (
        f", or say in label_map.txt what it stands for, e.g. `{value} ignore`"
        if spec.name == "folder"
        else ""
    )
    raise DataError(
        f"label value {value}, {count} pixels, first at row {row}, column {column}{more}, is neither one of the "
        f"{spec.num_classes} classes nor {IGNORE} (ignore). Classes of '{spec.name}' are {known[0]} to {known[-1]}: "
        f"'{spec.classes[0]}' ... '{spec.classes[-1]}'", file=file,
        hint=f"change the value, to 255 if it is to be ignored, or list its class{say}",
    )  # fmt: skip


def _map_colors(rgb: np.ndarray, spec: DatasetSpec, file: str | Path) -> np.ndarray:
    """Class ids uint8 [H, W] of a colour label uint8 [H, W, 3]."""
    colors = np.array(spec.colors + spec.ignored_colors, np.int32)
    ids = np.array([*range(spec.num_classes), *[IGNORE] * len(spec.ignored_colors)], np.uint8)
    known, codes = _pack(colors), _pack(rgb.astype(np.int32))
    order = np.argsort(known)
    found = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
    wrong = known[found] != codes
    if not wrong.any():
        return ids[found]
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    color, count = rgb[row, column].astype(np.int32), int((codes == codes[row, column]).sum())
    nearest = int(((colors - color) ** 2).sum(-1).argmin())
    owner = f"'{spec.classes[nearest]}'" if nearest < spec.num_classes else "ignore"
    raise DataError(
        f"label colour {tuple(color.tolist())}, {count} pixels, first at row {row}, column {column}, is not declared in "
        f"classes.txt; the nearest is {tuple(colors[nearest].tolist())}, {owner}", file=file,
        hint="correct the label or the table; `ignore` and a colour on a line of its own leaves that colour out",
    )  # fmt: skip


def _pack(rgb: np.ndarray) -> np.ndarray:
    """int32 [...] of int32 [..., 3]: one number a colour."""
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def check_sizes(
    image: tuple[int, int], label: tuple[int, int], image_file: str | Path, label_file: str | Path
) -> None:
    """Refuse an image [H, W] and a label [H, W] of different sizes.

    Raises:
        DataError: with both sizes.
    """
    if tuple(image) != tuple(label):
        raise DataError(
            f"is {image[1]}x{image[0]} (width x height) but its label {label_file} is {label[1]}x{label[0]}", file=image_file,
            hint="make them equally large (resize labels with nearest neighbour only); the EXIF orientation of JPEG, PNG "
            "and WebP photos is applied, that of TIFF files and labels is not",
        )  # fmt: skip


def join_pair(
    image: Decoded,
    label: np.ndarray,
    fill: Sequence[float],
    image_file: str | Path,
    label_file: str | Path,
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels [H, W, C] and the label [H, W] of a pair, 255 where no channel of the image holds data.

    Raises:
        DataError: they differ in size.
    """
    check_sizes(image.pixels.shape[:2], label.shape, image_file, label_file)
    if (empty := image.empty) is not None:
        label = np.where(empty, np.uint8(IGNORE), label)
    return image.filled(fill), label
