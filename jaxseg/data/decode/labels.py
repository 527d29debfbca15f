"""Labels as the numbers that their files store, never as pictures, and label maps applied to them.

One rule for all formats: a label's value is what a GIS program shows as the band's value. Nothing
is inverted, rotated, stretched or coloured. RGB is read where a data set declares colours. Anything
wrong with a file is a DataError that names it.
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
    detect_format,
    lossy_coding,
    open_picture,
)
from jaxseg.data.decode.images import MAX_PIXELS, Decoded, load_npy
from jaxseg.data.spec import DatasetSpec, LabelRange
from jaxseg.errors import DataError

UNKNOWN = 254  # ids that the label map lacks, until they are reported
MISSING = -(2**62)  # pixels without data, as declared by the file: no label value is so low
DENSE = 65536  # label values below are looked up by index
MEND_LABEL = "replace it, or remove it and its image"
SAVE_NUMBERS = (
    "save one class number a pixel, as a single-channel or palette PNG: 0 for the first class, 255 "
    "to ignore"
)


class Stored(NamedTuple):
    """The content of a label file.

    Attributes:
        values: [H, W] numbers, or [H, W, C] colours.
        what: Type of the file, for messages: "PNG of mode RGB".
        palette: uint8 [N, 3] colours of the values if these are indices, else None.
        nodata: Value that the file declares to be no data, or None.
        data: bool [H, W], False where the file's own mask says that there are no data, or None.
    """

    values: np.ndarray
    what: str
    palette: np.ndarray | None = None
    nodata: float | None = None
    data: np.ndarray | None = None


# --- Stored values ---


def _read_npy(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    values = load_npy(io.BytesIO(data), file)
    return Stored(_one_band(values), f"array {values.shape} of {values.dtype}")


def _read_tiff(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    with tiffs.open_tiff(data, file) as opened:
        header = opened.header
        if coding := opened.lossy():
            raise _lossy(file, f"{coding} (in a TIFF)")
        height, width = header.shape[:2] if header.axes[-1:] == "S" else header.shape[-2:]
        check_pixels((height, width), file, max_pixels)
        return Stored(
            _one_band(opened.read()),
            f"TIFF of {tiffs.describe(header)}",
            header.palette,
            header.nodata,
            opened.mask(),
        )


def _read_picture(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    kind = detect_format(data)
    try:
        with open_picture(data, kind) as image:
            width, height = image.size
            check_pixels((height, width), file, max_pixels)
            frames = count_frames(image)
            if frames > 1:
                raise DataError(
                    f"is a label of {frames} pictures, shape {(frames, height, width)}, not one "
                    "class id a pixel",
                    file=file,
                    hint=SAVE_NUMBERS,
                )
            values, what = np.asarray(image), f"{image.format} of mode {image.mode}"
            colors = image.getpalette("RGB") if image.mode == "P" else None
    except DataError:
        raise
    except UnidentifiedImageError:
        raise _unreadable(file, f"{kind}: cut short, or an unknown variant") from None
    except UNREADABLE as error:
        raise _unreadable(file, f"{kind}: {error}") from None
    if data[:8] == PNG:
        bits, color_type = data[24], data[25]
        if bits in (1, 2, 4) and color_type == 0 and values.dtype == np.uint8:
            values = values // (255 // (2**bits - 1))  # Pillow stretches few bits over 0..255
        if bits == 16 and color_type in (2, 4, 6):
            problem = f"is a label of 16 bits in several channels ({what})"
            raise DataError(problem, file=file, hint=SAVE_NUMBERS)
    palette = None if colors is None else np.array(colors, np.uint8).reshape(-1, 3)
    return Stored(values, what, palette)


def _unreadable(file: str | Path, reason: str) -> DataError:
    return DataError(f"cannot be read as a label ({reason})", file=file, hint=MEND_LABEL)


def _one_band(values: np.ndarray) -> np.ndarray:
    """Return [H, W] of [1, H, W] and [H, W, 1], whose axis of 1 is the only band or page."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        return values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _lossy(file: str | Path, what: str) -> DataError:
    return DataError(
        f"is compressed as {what}: its numbers may no longer be those that were drawn",
        file=file,
        hint="save labels without loss, as PNG, from the original",
    )


READERS: dict[str, Callable[[bytes, str | Path, int], Stored]] = {
    "NPY": _read_npy,
    "TIFF": _read_tiff,
    "PNG": _read_picture,
    "BMP": _read_picture,
    "GIF": _read_picture,
    "WebP": _read_picture,
}


def _read_stored(data: bytes, file: str | Path, max_pixels: int) -> Stored:
    """Read a label file of any format without loss."""
    kind = detect_format(data)
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


# --- Numbers and colours ---


def decode_label(
    data: bytes, file: str | Path, spec: DatasetSpec, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Return the numbers or colours of an encoded label.

    Args:
        data: The file's bytes: PNG, TIFF, BMP, GIF, NPY or lossless WebP.
        file: Named in messages.
        spec: The data set; its `colors` allow RGB, and decide how a palette is read.
        max_pixels: Largest number of pixels of a label, 0 for no limit.

    Returns:
        Raw ids [H, W], uint8 or uint16, or int64 where these are too small, with `MISSING` where
        the file says that it holds no data; or RGB uint8 [H, W, 3] of a colour label.

    Raises:
        DataError: The label cannot be read, was compressed with loss, or holds neither one whole
            number a pixel nor declared colours.
    """
    stored = _read_stored(data, file, max_pixels)
    if stored.palette is not None and spec.colors:
        return _palette_colors(stored, file, spec)
    values = stored.values
    if values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8 and spec.colors:
        return values[..., :3]
    if values.ndim == 3 and values.shape[2] in (3, 4) and spec.name == "folder":
        raise DataError(
            f"is a label of {values.shape[2]} channels ({stored.what}), not one class number a "
            "pixel",
            file=file,
            hint="declare colours in classes.txt, one line a class: `road 128 64 128`, or save "
            "class numbers (single-channel or palette PNG)",
        )
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
    """Return numbers as uint8, uint16 or int64; raise DataError unless they are whole."""
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
                f"holds {values.max()} ({what}), which is not a label value",
                file=file,
                hint=SAVE_NUMBERS,
            )
        return values.astype(np.int64)
    if values.dtype.kind != "f":
        raise DataError(
            f"holds values of {values.dtype} ({what}), which are not class numbers",
            file=file,
            hint=SAVE_NUMBERS,
        )
    if missing is not None:
        values = np.where(missing, values.dtype.type(0), values)
    with np.errstate(invalid="ignore"):
        limit = min(2.0**62, float(np.finfo(values.dtype).max))
        wrong = ~(np.abs(values) <= limit) | (values != np.floor(values))  # NaN as well
    if wrong.any():
        row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise DataError(
            f"holds {values[row, column]} at row {row}, column {column} "
            f"({np.count_nonzero(wrong)} such pixels; {what}), which is not a whole number",
            file=file,
            hint=SAVE_NUMBERS,
        )
    return values.astype(np.int64)


def _missing(stored: Stored, file: str | Path, spec: DatasetSpec) -> np.ndarray | None:
    """Return where the file says that there are no data: bool [H, W], or None if it does not.

    A no-data value that label_map.txt lists has the meaning given there. One that is a class by
    default could be either, so the user has to decide.
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
            f"declares {stored.nodata:g} to be its no-data value (GDAL_NODATA), which is also the "
            f"number of class '{name}' ({np.count_nonzero(found)} pixels)",
            file=file,
            hint=f"say in label_map.txt what is meant, `{stored.nodata:g} ignore` or "
            f"`{stored.nodata:g} {name}`, with the lines of the other classes",
        )
    return found if missing is None else missing | found


def _index_of(value: int, spec: DatasetSpec) -> int | None:
    """Return the class, or 255, that a value stands for; None if the map lacks it."""
    ranges = (index for first, last, index in spec.label_ranges if first <= value <= last)
    return spec.label_map.get(value, next(ranges, None))


def _palette_colors(stored: Stored, file: str | Path, spec: DatasetSpec) -> np.ndarray:
    """Return RGB uint8 [H, W, 3] of an indexed label.

    Raises:
        DataError: A colour is not declared, so that its indices may be meant instead.
    """
    assert stored.palette is not None
    indices = stored.values.astype(np.intp)
    used = np.unique(indices).tolist()
    declared = set(spec.colors) | set(spec.ignored_colors)
    colors = {
        index: tuple(int(value) for value in stored.palette[index])
        for index in used
        if index < len(stored.palette)
    }
    undeclared = [index for index in used if colors.get(index) not in declared]
    if not undeclared:
        return stored.palette[indices]
    index = undeclared[0]
    if all(value == IGNORE or _index_of(value, spec) is not None for value in used):
        are = "are class numbers"
        hint = "take the colours out of classes.txt to have the indices read as class numbers"
    else:
        are = "are not all class numbers"
        hint = "declare this colour in classes.txt, or save class numbers"
    raise DataError(
        f"is a palette label whose index {index} ({np.count_nonzero(indices == index)} pixels) has "
        f"the colour {colors.get(index, 'of no entry')}, which classes.txt does not declare; its "
        f"indices {', '.join(map(str, used[:8]))} {are}",
        file=file,
        hint=hint,
    )


# --- Label maps ---


class LabelTable(NamedTuple):
    """A label map for arrays: small values by index, all of them by ranges.

    Attributes:
        dense: uint8 [N], class index of each small value, `UNKNOWN` where the map has none; the
            last entry stands for all larger values.
        first: int64 [M], first value of each range, ascending.
        last: int64 [M], last value of each range.
        classes: uint8 [M], class index of each range, or 255.
    """

    dense: np.ndarray
    first: np.ndarray
    last: np.ndarray
    classes: np.ndarray


def make_table(ids: Mapping[int, int], ranges: Sequence[LabelRange] = ()) -> LabelTable:
    """Return the table of a label map.

    255 is 255 unless the map says otherwise, and so is what files declare to be no data.

    Args:
        ids: {raw value: class index or 255}.
        ranges: Further (first value, last value, class index or 255).
    """
    found = [*((raw, raw, index) for raw, index in ids.items()), *ranges]
    if not any(first <= IGNORE <= last for first, last, _ in found):
        found.append((IGNORE, IGNORE, IGNORE))
    found.append((MISSING, MISSING, IGNORE))
    found.sort()
    size = min(max(256, *(last + 1 for _, last, _ in found)), DENSE)
    dense = np.full(size + 1, UNKNOWN, np.uint8)
    for first, last, index in found:
        dense[max(first, 0) : max(min(last + 1, size), 0)] = index
    firsts, lasts, classes = zip(*found)
    return LabelTable(
        dense, np.array(firsts, np.int64), np.array(lasts, np.int64), np.array(classes, np.uint8)
    )


def map_ids(ids: np.ndarray, table: LabelTable) -> np.ndarray:
    """Return the class indices of raw ids.

    Args:
        ids: uint8, uint16 or int64 [H, W].
        table: The label map, from `make_table`.

    Returns:
        uint8 [H, W] of class indices and 255, `UNKNOWN` where the map lacks an id.
    """
    if ids.dtype == np.uint8:
        return cv2.LUT(ids, table.dense[:256])
    beyond = len(table.dense) - 1
    if ids.dtype == np.uint16:
        return table.dense[ids if beyond == DENSE else np.minimum(ids, np.uint16(beyond))]
    inside = (ids >= 0) & (ids < beyond)
    label = table.dense[np.where(inside, ids, 0)]
    if not inside.all():
        rest = ids[~inside]
        place = np.searchsorted(table.first, rest, "right") - 1
        place = np.maximum(place, 0)  # in case of a value below MISSING
        known = (rest >= table.first[place]) & (rest <= table.last[place])
        label[~inside] = np.where(known, table.classes[place], np.uint8(UNKNOWN))
    return label


def map_label(
    ids: np.ndarray, table: LabelTable, spec: DatasetSpec, file: str | Path
) -> np.ndarray:
    """Return the class indices of a decoded label.

    Args:
        ids: What `decode_label` gave.
        table: Of the file's label map, from `make_table`.
        spec: The data set.
        file: Named in messages.

    Returns:
        uint8 [H, W] of class indices and 255.

    Raises:
        DataError: A value or a colour is unknown, with its place and how often it occurs.
    """
    if ids.ndim == 3:
        return _map_colors(ids, spec, file)
    label = map_ids(ids, table)
    wrong = label == UNKNOWN
    if wrong.any():
        raise _unknown_value(ids, wrong, spec, file)
    return label


def _unknown_value(
    ids: np.ndarray, wrong: np.ndarray, spec: DatasetSpec, file: str | Path
) -> DataError:
    """Return the error about ids that the label map lacks, where `wrong`."""
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    value = int(ids[row, column])
    count = int((ids == value).sum())
    others = sorted({int(v) for v in np.unique(ids[wrong])} - {value})
    more = f" (and other such values: {', '.join(map(str, others[:8]))})" if others else ""
    known = [
        *spec.label_map.items(),
        *((raw, index) for first, last, index in spec.label_ranges for raw in (first, last)),
    ]
    values = sorted(raw for raw, index in known if index != IGNORE)
    hint = "change the value, to 255 if it is to be ignored, or list its class"
    if spec.name == "folder":
        hint += f", or say in label_map.txt what it stands for, e.g. `{value} ignore`"
    return DataError(
        f"label value {value}, {count} pixels, first at row {row}, column {column}{more}, is "
        f"neither one of the {spec.num_classes} classes nor {IGNORE} (ignore). Classes of "
        f"'{spec.name}' are {values[0]} to {values[-1]}: '{spec.classes[0]}' ... "
        f"'{spec.classes[-1]}'",
        file=file,
        hint=hint,
    )


def _map_colors(rgb: np.ndarray, spec: DatasetSpec, file: str | Path) -> np.ndarray:
    """Return the class indices uint8 [H, W] of a colour label uint8 [H, W, 3]."""
    colors = np.array(spec.colors + spec.ignored_colors, np.int32)
    ignored = [IGNORE] * len(spec.ignored_colors)
    classes = np.array([*range(spec.num_classes), *ignored], np.uint8)
    known, codes = _pack(colors), _pack(rgb.astype(np.int32))
    order = np.argsort(known)
    found = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
    wrong = known[found] != codes
    if not wrong.any():
        return classes[found]
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    color = rgb[row, column].astype(np.int32)
    count = int((codes == codes[row, column]).sum())
    nearest = int(((colors - color) ** 2).sum(-1).argmin())
    owner = f"'{spec.classes[nearest]}'" if nearest < spec.num_classes else "ignore"
    raise DataError(
        f"label colour {tuple(color.tolist())}, {count} pixels, first at row {row}, column "
        f"{column}, is not declared in classes.txt; the nearest is "
        f"{tuple(colors[nearest].tolist())}, {owner}",
        file=file,
        hint="correct the label or the table; `ignore` and a colour on a line of its own leaves "
        "that colour out",
    )


def _pack(rgb: np.ndarray) -> np.ndarray:
    """Return one number for each colour: int32 [...] of int32 [..., 3]."""
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


# --- Pairs ---


def check_sizes(
    image: tuple[int, int], label: tuple[int, int], image_file: str | Path, label_file: str | Path
) -> None:
    """Refuse an image and a label of different sizes.

    Args:
        image: (H, W) of the image.
        label: (H, W) of the label.
        image_file: Named in the message.
        label_file: Named in the message.

    Raises:
        DataError: The sizes differ; the message gives both.
    """
    if tuple(image) != tuple(label):
        raise DataError(
            f"is {image[1]}x{image[0]} (width x height) but its label {label_file} is "
            f"{label[1]}x{label[0]}",
            file=image_file,
            hint="make them equally large (resize labels with nearest neighbour only); the EXIF "
            "orientation of JPEG, PNG and WebP photos is applied, that of TIFF files and labels is "
            "not",
        )


def join_pair(
    image: Decoded,
    label: np.ndarray,
    fill: Sequence[float],
    image_file: str | Path,
    label_file: str | Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels [H, W, C] and the label [H, W] of a pair.

    The label becomes 255 where no channel of the image holds data.

    Args:
        image: The image.
        label: uint8 [H, W].
        fill: [C] values for missing data; see `Decoded.filled`.
        image_file: Named in messages.
        label_file: Named in messages.

    Raises:
        DataError: They differ in size.
    """
    height, width = label.shape
    check_sizes(image.pixels.shape[:2], (height, width), image_file, label_file)
    if (empty := image.empty) is not None:
        label = np.where(empty, np.uint8(IGNORE), label)
    return image.filled(fill), label
