"""Bytes to arrays: images of any kind, labels, and label maps applied. Whatever is wrong is a DataError naming the file.

Photos are read with OpenCV (common PNG with imagecodecs), TIFF with tifffile, labels with Pillow, since OpenCV turns palette ids into colours. The format is
told by the bytes, not by the name. An image's EXIF orientation is applied (a TIFF's is not): its label is drawn on the picture as
people see it.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from imagecodecs import PngError, png_decode
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 - the formats beyond preinit's

from jaxseg.data.datasets import IGNORE, DataError, DatasetSpec

UNKNOWN = 254  # what ids outside the label map become, until they are reported
EXIF_ORIENTATION = 0x0112
MEND_IMAGE = "it is damaged or of an unknown format: replace it, or remove it and its label"
MEND_LABEL = "it is damaged: replace it, or remove it and its image"
UNREADABLE = (OSError, SyntaxError, ValueError)  # what Pillow raises for damaged files
# Threads read files while others import TFDS, which replaces __import__ for a while: what is imported at first use must be there before.
Image.preinit()
Image.MAX_IMAGE_PIXELS = None  # aerial photos are larger than what Pillow takes for an attack
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY = b"\x93NUMPY"
PNG = b"\x89PNG\r\n\x1a\n"
# Pillow's mode -> (channels, dtype); 16-bit PNGs are told by their tile, as Pillow makes 8 bits of them.
MODES = {
    "1": (1, "uint8"), "L": (1, "uint8"), "LA": (4, "uint8"), "P": (3, "uint8"), "PA": (4, "uint8"), "RGB": (3, "uint8"), "RGBA": (4, "uint8"),
    "CMYK": (3, "uint8"), "YCbCr": (3, "uint8"), "I": (1, "uint16"), "I;16": (1, "uint16"), "I;16B": (1, "uint16"), "F": (1, "float32"),
}  # fmt: skip


# --- Images -----------------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What an image is, without its pixels: size (H, W), EXIF orientation applied, channels in the file, dtype once decoded."""

    size: tuple[int, int]
    channels: int
    dtype: str
    alpha: bool = True  # whether the last of 2 or 4 channels is transparency, which RGB can do without


def decode_image(data: bytes, file: str | Path, channels: int = 3) -> np.ndarray:
    """[H, W, channels] of an encoded image: uint8 or uint16 as in the file, any other number as float32. DataError.

    channels 3: RGB; grey is repeated, transparency dropped. 1: grey, made of colours if need be. 4: RGBA, or any four. Any other
    number: what a TIFF or NPY file holds. `file` is for messages only.
    """
    if data[:4] in TIFF:
        return _decode_tiff(data, file, channels)
    if data[:6] == NPY:
        return _fit(_as_image(_load_npy(io.BytesIO(data), file), channels, file), channels, file, alpha=False)
    # libjpeg fills what is missing with grey and OpenCV does not tell; a whole file ends with this marker.
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in bytes(data[-256:]):
        inspect_image(data, file, load=True)
    if channels == 3 and _is_plain_png(data):
        try:
            return png_decode(data)  # up to a quarter faster than OpenCV's libpng
        except PngError as error:
            raise DataError(f"{file}: cannot be read as an image ({error}); {MEND_IMAGE}.") from None
    return _decode_photo(data, file, channels)


def _is_plain_png(data: bytes) -> bool:
    """Whether a PNG is RGB of 8 bits, without transparency or orientation: its pixels are the image as they are."""
    if data[:8] != PNG or data[24:26] != b"\x08\x02":
        return False
    at = 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if kind in (b"tRNS", b"eXIf"):
            return False
        at += size + 12
    return True


def _decode_photo(data: bytes, file: str | Path, channels: int) -> np.ndarray:
    flags = {3: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH, 1: cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH}.get(
        channels, cv2.IMREAD_UNCHANGED
    )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{file}: cannot be read as an image ({len(data)} bytes); {MEND_IMAGE}.")
    if channels in (1, 3):
        return image.reshape(*image.shape[:2], channels)
    with Image.open(io.BytesIO(data)) as header:
        if header.getexif().get(EXIF_ORIENTATION, 1) != 1:  # which OpenCV leaves alone where it reads what there is
            raise DataError(f"{file}: has an EXIF orientation, which is applied to 1 and 3 channels only; save it upright.")
    image = image[..., None] if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    return _fit(np.ascontiguousarray(image), channels, file)


def _decode_tiff(data: bytes, file: str | Path, channels: int) -> np.ndarray:
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            image, axes, page = tiff.series[0].asarray(), tiff.series[0].axes, tiff.pages[0]
            alpha = any(page.extrasamples)
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                image, axes = (page.colormap[:, image] >> 8).astype(np.uint8), "SYX"
    except Exception as error:  # tifffile raises whatever its parsing runs into
        raise DataError(f"{file}: cannot be read as a TIFF ({error}); {MEND_IMAGE}.") from None
    return _fit(_as_image(image, channels, file, axes), channels, file, alpha)


def _load_npy(stream: Any, file: str | Path) -> np.ndarray:
    try:
        return np.load(stream, mmap_mode="r" if isinstance(stream, Path) else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read as a NumPy array ({error}); {MEND_IMAGE}.") from None


def _stored(shape: tuple[int, ...], dtype: Any, channels: int, file: str | Path, axes: str = "") -> int:
    """The axis of channels of an array that is an image; DataError if it is none."""
    if len(shape) not in (2, 3) or not np.prod(shape) or np.dtype(dtype).kind not in "buif":
        raise DataError(f"{file}: an array {tuple(shape)} of {dtype}; an image is [H, W] or [H, W, channels], of numbers.")
    if len(shape) == 2:
        return 2
    if "S" in axes and len(axes) == 3:
        return axes.index("S")
    if channels in (shape[0], shape[-1]):
        return 2 if shape[-1] == channels else 0
    return 0 if shape[0] < shape[-1] else 2


def _as_image(array: np.ndarray, channels: int, file: str | Path, axes: str = "") -> np.ndarray:
    """[H, W, C] uint8, uint16 or float32 of an array as it was stored."""
    axis = _stored(array.shape, array.dtype, channels, file, axes)
    array = array[..., None] if array.ndim == 2 else np.moveaxis(array, axis, -1)
    return np.ascontiguousarray(array, _kept(array.dtype))


def _kept(dtype: np.dtype) -> str:
    """The dtype an image has once decoded."""
    return dtype.name if dtype.name in ("uint8", "uint16") else "float32"


def _fit(image: np.ndarray, channels: int, file: str | Path, alpha: bool = True) -> np.ndarray:
    """An image [H, W, C] with the channels asked for; DataError if it has not these."""
    have = image.shape[2]
    check_channels(have, channels, file, alpha)
    if have == channels:
        return image
    if channels == 1:
        return image[..., :3].mean(-1, keepdims=True).astype(image.dtype) if have > 2 else image[..., :1]
    return image[..., :3] if have == 4 else np.repeat(image[..., :1], 3, -1)


def check_channels(have: int, channels: int, file: str | Path, alpha: bool = True) -> None:
    """DataError unless an image of so many channels can be read as `channels`: equal, grey as RGB, RGB as grey, without its `alpha`."""
    if have != channels and (channels, have - (alpha and have in (2, 4))) not in ((3, 1), (3, 3), (1, 1), (1, 3)):
        raise DataError(
            f"{file}: has {have} channels, but config.dataset.channels={channels}; set --config.dataset.channels={have} "
            "if all images are like this one, else correct or remove it."
        )


def inspect_image(data: bytes | Path, file: str | Path, channels: int = 3, *, load: bool = False) -> Header:
    """The Header of an image, read as `channels` (which tells a TIFF's or NPY's channel axis); `load` also decodes every pixel.

    Raises DataError if it cannot be read.
    """
    try:
        start = _first_bytes(data) if isinstance(data, Path) else data[:6]
        if start[:4] in TIFF:
            return _inspect_tiff(data, file, channels)
        if start == NPY:
            array = _load_npy(data if isinstance(data, Path) else io.BytesIO(data), file)
            return _header(array.shape, array.dtype, channels, file)
        with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
            count, dtype = MODES.get(image.mode, (len(image.getbands()), "uint8"))
            if image.format == "PNG" and ";16" in str(image.tile):
                dtype = "uint16"
            if "transparency" in image.info:
                count = 4
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
            size = image.size if turned else image.size[::-1]
            if load:
                image.load()
    except UNREADABLE as error:
        raise (
            error if isinstance(error, DataError) else DataError(f"{file}: cannot be read as an image ({_reason(error)}); {MEND_IMAGE}.")
        ) from None
    return Header(size, count, dtype)


def _first_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(6)


def _inspect_tiff(data: bytes | Path, file: str | Path, channels: int) -> Header:
    try:
        with tifffile.TiffFile(data if isinstance(data, Path) else io.BytesIO(data)) as tiff:
            shape, dtype, axes = tiff.series[0].shape, tiff.series[0].dtype, tiff.series[0].axes
            palette = tiff.pages[0].photometric == tifffile.PHOTOMETRIC.PALETTE
            alpha = any(tiff.pages[0].extrasamples)
    except Exception as error:  # tifffile raises whatever its parsing runs into
        raise DataError(f"{file}: cannot be read as a TIFF ({error}); {MEND_IMAGE}.") from None
    header = _header(shape, dtype, channels, file, axes)
    return header._replace(channels=3, dtype="uint8") if palette else header._replace(alpha=alpha)


def _header(shape: tuple[int, ...], dtype: Any, channels: int, file: str | Path, axes: str = "") -> Header:
    """The Header of an array as `_as_image` would read it."""
    axis = _stored(shape, dtype, channels, file, axes)
    sizes = [*shape, 1] if len(shape) == 2 else [*shape[:axis], *shape[axis + 1 :], shape[axis]]
    return Header((sizes[0], sizes[1]), sizes[2], _kept(np.dtype(dtype)), alpha=False)


def _reason(error: Exception) -> str:
    return "no known format" if isinstance(error, UnidentifiedImageError) else str(error)


# --- Labels -----------------------------------------------------------------------------------------------------------


def decode_label(data: bytes, file: str | Path, spec: DatasetSpec) -> np.ndarray:
    """Raw ids [H, W], uint8 or int32, of an encoded single-channel or palette label; RGB uint8 [H, W, 3] of a colour
    label if the spec has colours. Raises DataError.
    """
    mode, ids = _read_ids(data, file)
    if mode in ("RGB", "RGBA") and spec.colors:
        return ids[..., :3]
    if mode in ("RGB", "RGBA") and spec.name == "folder":
        raise DataError(
            f"{file}: a label of mode {mode}, not one class number a pixel; declare colours in classes.txt, one "
            "line a class: `road 128 64 128`, or save class numbers (single-channel or palette PNG)."
        )
    if ids.ndim != 2 or mode == "F":
        raise DataError(
            f"{file}: a label of mode {mode}, not one class id a pixel; save it as a single-channel or palette "
            "PNG whose values are class numbers, from 0 in the order of the classes (255: ignore)."
        )
    if ids.dtype == np.uint8 and data[:8] == PNG and data[24] in (2, 4) and data[25] == 0:
        return ids // (255 // (2 ** data[24] - 1))  # Pillow stretches grey values of few bits over 0..255
    if ids.dtype in (np.uint8, bool):
        return ids.astype(np.uint8)
    largest = min(np.iinfo(ids.dtype).max, 2**31 - 1)  # larger ones are unknown anyway, and must not wrap round
    return np.maximum(np.minimum(ids, ids.dtype.type(largest)).astype(np.int64), -1).astype(np.int32)


def _read_ids(data: bytes, file: str | Path) -> tuple[str, np.ndarray]:
    """(Pillow's mode, pixels) of a label."""
    if data[:6] == NPY:
        ids = _load_npy(io.BytesIO(data), file)
        return "I" if ids.dtype.kind in "bui" else "F", ids
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as a label ({_reason(error)}); {MEND_LABEL}.") from None


def map_label(ids: np.ndarray, table: np.ndarray, spec: DatasetSpec, file: str | Path) -> np.ndarray:
    """Class ids uint8 [H, W] of what `decode_label` gave; `table` is from `make_table`.

    DataError tells where an id or a colour is unknown.
    """
    if ids.ndim == 3:
        return _map_colors(ids, spec, file)
    if ids.dtype == np.uint8:
        label = cv2.LUT(ids, table[:256])
    else:
        inside = (ids >= 0) & (ids < len(table))
        label = np.where(inside, table[np.where(inside, ids, 0)], np.uint8(UNKNOWN))
    wrong = label == UNKNOWN
    if not wrong.any():
        return label
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    value = int(ids[row, column])
    count, others = int((ids == value).sum()), sorted({int(v) for v in np.unique(ids[wrong])} - {value})
    more = f" (and other such values: {', '.join(map(str, others[:8]))})" if others else ""
    raise DataError(
        f"{file}: label value {value}, {count} pixels, first at row {row}, column {column}{more}, is neither one of "
        f"the {spec.num_classes} classes nor {IGNORE} (ignore). Classes of '{spec.name}' are {min(spec.label_map)} to "
        f"{max(spec.label_map)}: '{spec.classes[0]}' ... '{spec.classes[-1]}'; change the value, to 255 if it is to be "
        f"ignored, or list its class{', or say in label_map.txt what it stands for' if spec.name == 'folder' else ''}."
    )


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
        f"{file}: label colour {tuple(color.tolist())}, {count} pixels, first at row {row}, column {column}, is not "
        f"declared in classes.txt; the nearest is {tuple(colors[nearest].tolist())}, {owner}. Correct the label or the "
        "table; `ignore` and a colour on a line of its own leaves that colour out."
    )


def _pack(rgb: np.ndarray) -> np.ndarray:
    """int32 [...] of int32 [..., 3]: one number a colour."""
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def make_table(ids: Mapping[int, int]) -> np.ndarray:
    """A label map as an array: class id of each raw id 0..255 or beyond, `UNKNOWN` where there is none; 255 is 255 unless mapped."""
    table = np.full(max(256, max(ids) + 1), UNKNOWN, np.uint8)
    table[IGNORE] = IGNORE
    table[list(ids)] = list(ids.values())
    return table


def check_sizes(image: tuple[int, int], label: tuple[int, int], image_file: str | Path, label_file: str | Path) -> None:
    """DataError unless image and label are equally large."""
    if tuple(image) != tuple(label):
        raise DataError(
            f"{image_file} is {image[1]}x{image[0]} (width x height) but its label {label_file} is "
            f"{label[1]}x{label[0]}; make them equally large (resize labels with nearest neighbour only), and mind "
            "EXIF orientation, which is applied."
        )
