"""Bytes to images of any kind, and to what their headers say. Whatever is wrong is a DataError naming the file.

JPEG is read with libjpeg-turbo, whose warnings count as errors, TIFF with tifffile, other photos with OpenCV (common PNG
with imagecodecs). The format is told by the bytes, not by the name.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from imagecodecs import PngError, png_decode
from PIL import UnidentifiedImageError

from jaxseg.data.decode import tiff as tiffs
from jaxseg.data.decode.formats import (
    EXIF_PARTS,
    EXIF_WITHIN,
    HEAD,
    PNG,
    UNREADABLE,
    check_pixels,
    count_frames,
    exif_orientation,
    open_picture,
    tell_format,
)
from jaxseg.errors import DataError

MAX_PIXELS = 2**30  # config.dataset.max_pixels by default: 3 GB of RGB
MEND_IMAGE = "replace it, or remove it and its label"
BGRA_ORDER = [2, 1, 0, 3]  # OpenCV's channels as RGBA
GLUED = b"\xff\xd9\xff\xd8\xff"  # a JPEG's end and the next one's beginning
MULTI_PICTURE = b"MPF\0"  # which cameras declare: previews, the other eye, a gain map
# Pillow's mode -> (channels, dtype); 16-bit PNGs are told by their tile, as Pillow makes 8 bits of them.
MODES = {
    "1": (1, "uint8"), "L": (1, "uint8"), "LA": (4, "uint8"), "P": (3, "uint8"), "PA": (4, "uint8"), "RGB": (3, "uint8"),
    "RGBA": (4, "uint8"), "CMYK": (3, "uint8"), "YCbCr": (3, "uint8"), "I": (1, "uint16"), "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"), "F": (1, "float32"),
}  # fmt: skip
# EXIF's orientation -> (quarter turns counter-clockwise, whether mirrored left to right afterwards).
TURNS = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}


class Header(NamedTuple):
    """What an image is, without its pixels.

    Attributes:
        size: (H, W), orientation applied.
        channels: in the file.
        dtype: of the image once decoded, "uint8", "uint16" or "float32".
        alpha: whether the last of 2 or 4 channels is transparency, which RGB can do without.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    alpha: bool = True


class Decoded(NamedTuple):
    """An image as it is in its file.

    Attributes:
        pixels: [H, W, C] uint8, uint16 or float32.
        missing: bool [H, W, C], True where the file holds no data; None where it holds data everywhere.
    """

    pixels: np.ndarray
    missing: np.ndarray | None = None

    @property
    def empty(self) -> np.ndarray | None:
        """bool [H, W], True where no channel holds data; None if there is no such pixel."""
        if self.missing is None:
            return None
        empty = self.missing.all(-1)
        return empty if empty.any() else None

    def filled(self, fill: Sequence[float] = ()) -> np.ndarray:
        """The pixels with `fill` [C], by default the mean of the channel's other values, where data are missing."""
        if self.missing is None:
            return self.pixels
        pixels = self.pixels.copy()
        for channel in range(pixels.shape[-1]):
            holes = self.missing[..., channel]
            if fill:
                value = fill[channel]
            else:
                value = (
                    0.0
                    if holes.all()
                    else self.pixels[..., channel].mean(where=~holes, dtype=np.float64)
                )
            pixels[holes, channel] = value if pixels.dtype.kind == "f" else np.rint(value)
        return pixels


class ImageOptions(NamedTuple):
    """How the images of a data set are read.

    Attributes:
        channels: 3 gives RGB; grey is repeated, transparency dropped. 1 gives grey, made of colours if need be. 4 gives
            RGBA, or any four. Any other number: what a TIFF or NPY file holds.
        nodata: values that mean "no data here" (config.dataset.nodata), beside those that TIFF files declare;
            ("none",) for no value at all.
        max_pixels: the most pixels an image may have, 0 for any number.
        fill: [channels] what takes the place of missing data, () for the mean of the image's other values.
    """

    channels: int = 3
    nodata: tuple[Any, ...] = ()
    max_pixels: int = MAX_PIXELS
    fill: tuple[float, ...] = ()


RGB = ImageOptions()


# --- Pixels -----------------------------------------------------------------------------------------------------------


def decode_image(data: bytes, file: str | Path, channels: int = 3) -> np.ndarray:
    """The pixels that `decode` gives, channel means in place of missing data: [H, W, channels]. Raises DataError."""
    return decode(data, file, ImageOptions(channels)).filled()


def decode(data: bytes, file: str | Path, options: ImageOptions = RGB) -> Decoded:
    """Decode an image.

    Args:
        data: the file's bytes.
        file: for messages only.
        options: how it is to be read.

    Returns:
        Pixels of uint8 or uint16 as in the file, of any other number as float32, and where data are missing.

    Raises:
        DataError: it cannot be read, is of another kind, or has more pixels.
    """
    kind, (channels, nodata, max_pixels, _) = tell_format(data), options
    if kind == "TIFF":
        return _decode_tiff(data, file, channels, nodata, max_pixels)
    if kind == "NPY":
        array = load_npy(io.BytesIO(data), file)
        pixels = _channels_last(array, array.shape, channels, file)
        return _fit(mark_missing(pixels, nodata), channels, file, alpha=False)
    if kind == "JPEG":
        pixels = _decode_jpeg(bytes(data), file, channels, max_pixels)
    elif channels == 3 and _is_plain_png(data):
        pixels = _decode_png(data, file, max_pixels)
    else:
        pixels = _decode_photo(data, file, channels, max_pixels)
    return Decoded(pixels) if not nodata else mark_missing(pixels, nodata)


def _decode_jpeg(data: bytes, file: str | Path, channels: int, max_pixels: int) -> np.ndarray:
    """libjpeg goes on after damage, with grey or shifted pixels; simplejpeg makes errors of its warnings."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        check_pixels((height, width), file, max_pixels)
        cmyk = space in ("CMYK", "YCCK")
        pixels = simplejpeg.decode_jpeg(
            data, "CMYK" if cmyk else "GRAY" if channels == 1 else "RGB", strict=True
        )
    except ValueError as error:
        raise _unreadable(file, error) from None
    if MULTI_PICTURE not in data and (at := data.find(GLUED)) >= 0:
        raise _unreadable(file, f"a second JPEG begins at byte {at + 2}")
    if cmyk:  # inks to RGB as OpenCV does it, now that the file is known to be whole
        return _decode_photo(data, file, channels, max_pixels)
    if channels not in (1, 3):
        check_channels(1 if space == "Gray" else 3, channels, file)
    return np.ascontiguousarray(turn(pixels, exif_orientation(data)))


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A picture [H, W, C] turned and mirrored as EXIF's orientation, 1 to 8, says."""
    quarters, mirrored = TURNS[orientation]
    pixels = np.rot90(pixels, quarters) if quarters else pixels
    return pixels[:, ::-1] if mirrored else pixels


def _is_plain_png(data: bytes) -> bool:
    """Whether a PNG is RGB of 8 bits, without transparency, orientation or further pictures: its pixels are the image."""
    if data[:8] != PNG or data[24:26] != b"\x08\x02":
        return False
    at = 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if kind in (b"tRNS", b"eXIf", b"acTL"):
            return False
        if kind == b"IDAT":  # the others stand before it, but for an eXIf that seldom follows
            return b"eXIf" not in data[-(1 << 16) :]
        at += size + 12
    return True


def _decode_png(data: bytes, file: str | Path, max_pixels: int) -> np.ndarray:
    check_pixels(
        (int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")), file, max_pixels
    )
    try:
        return png_decode(data)  # up to a quarter faster than OpenCV's libpng
    except (PngError, ValueError) as error:  # libpng's message itself may be no text
        raise _unreadable(file, error) from None


def _decode_photo(data: bytes, file: str | Path, channels: int, max_pixels: int) -> np.ndarray:
    """Whatever else OpenCV reads."""
    inspect_image(data, file, max_pixels=max_pixels)
    mode = {
        3: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH,
        1: cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH,
    }
    flags = mode.get(channels, cv2.IMREAD_UNCHANGED) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise _unreadable(file, f"{len(data)} bytes, {tell_format(data) or 'no known format'}")
    image = image[..., None] if image.ndim == 2 else image
    if channels not in (1, 3):
        image = image[..., BGRA_ORDER[: image.shape[2]] if image.shape[2] > 2 else slice(None)]
    image = np.ascontiguousarray(turn(image, exif_orientation(data)))
    return image if image.shape[2] == channels else _fit(Decoded(image), channels, file).pixels


def _unreadable(file: str | Path, reason: object) -> DataError:
    return DataError(f"cannot be read as an image ({reason})", file=file, hint=MEND_IMAGE)


# --- Arrays of numbers ------------------------------------------------------------------------------------------------


def _decode_tiff(
    data: bytes, file: str | Path, channels: int, nodata: Sequence[Any], max_pixels: int
) -> Decoded:
    with tiffs.open_tiff(data, file) as opened:
        header = _tiff_header(opened.header, file, channels)
        check_pixels(header.size, file, max_pixels)
        stored, mask, facts = opened.read(), opened.mask(), opened.header
    if facts.palette is not None:
        return _fit(Decoded(facts.palette[stored.astype(np.intp)]), channels, file)
    values = (*nodata, facts.nodata) if facts.nodata is not None and nodata != ("none",) else nodata
    image = mark_missing(_channels_last(stored, facts.shape, channels, file, facts.axes), values)
    if mask is not None and nodata != ("none",) and not mask.all():
        missing = np.broadcast_to(~mask[..., None], image.pixels.shape)
        image = image._replace(
            missing=missing if image.missing is None else image.missing | missing
        )
    return _fit(image, channels, file, facts.alpha)


def load_npy(stream: Any, file: str | Path) -> np.ndarray:
    """The array of an .npy file, from a stream or (without reading it all) a path. Raises DataError."""
    try:
        return np.load(
            stream, mmap_mode="r" if isinstance(stream, Path) else None, allow_pickle=False
        )
    except Exception as error:  # NumPy raises whatever its parsing of the header runs into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot be read as a NumPy array ({reason})", file=file, hint=MEND_IMAGE
        ) from None


def _channel_axis(
    shape: tuple[int, ...], dtype: Any, channels: int, file: str | Path, axes: str = ""
) -> int:
    """The axis of channels of an array that is an image; DataError if it is none."""
    if len(shape) not in (2, 3) or not np.prod(shape) or np.dtype(dtype).kind not in "buif":
        raise DataError(
            f"an array {tuple(shape)} of {dtype}; an image is [H, W] or [H, W, channels], of numbers",
            file=file,
        )
    if len(shape) == 2:
        return 2
    if "S" in axes and len(axes) == 3:
        return axes.index("S")
    if channels in (shape[0], shape[-1]):
        return 2 if shape[-1] == channels else 0
    return 0 if shape[0] < shape[-1] else 2


def _channels_last(
    array: np.ndarray, shape: tuple[int, ...], channels: int, file: str | Path, axes: str = ""
) -> np.ndarray:
    """An array as it was stored as [H, W, C], in its own dtype."""
    axis = _channel_axis(shape, array.dtype, channels, file, axes)
    return array[..., None] if array.ndim == 2 else np.moveaxis(array, axis, -1)


def mark_missing(values: np.ndarray, nodata: Sequence[Any]) -> Decoded:
    """Values [H, W, C] of any dtype as an image, the no-data values marked as long as they have their own precision."""
    missing = None
    for value in () if nodata == ("none",) else nodata:
        found = tiffs.equals_nodata(values, float(value))
        if found.any():
            missing = found if missing is None else missing | found
    with np.errstate(
        over="ignore"
    ):  # a float64 beyond float32 is infinite, which the check of images tells
        return Decoded(np.ascontiguousarray(values, _decoded_dtype(values.dtype)), missing)


def _decoded_dtype(dtype: np.dtype) -> str:
    """The dtype an image has once decoded; one bit is the numbers 0 and 1."""
    return (
        "uint8"
        if dtype.kind == "b"
        else dtype.name
        if dtype.name in ("uint8", "uint16")
        else "float32"
    )


def _fit(image: Decoded, channels: int, file: str | Path, alpha: bool = True) -> Decoded:
    """An image with the channels asked for; DataError if it has not these."""
    have = image.pixels.shape[2]
    check_channels(have, channels, file, alpha)
    if have == channels:
        return image
    pixels, missing = image
    if channels == 1 and have > 2:
        pixels = pixels[..., :3].mean(-1, keepdims=True).astype(pixels.dtype)
        return Decoded(
            pixels, missing if missing is None else missing[..., :3].any(-1, keepdims=True)
        )
    chosen = [0] if channels == 1 else [0, 1, 2] if have == 4 else [0, 0, 0]
    return Decoded(pixels[..., chosen], missing if missing is None else missing[..., chosen])


def check_channels(have: int, channels: int, file: str | Path, alpha: bool = True) -> None:
    """Refuse an image that cannot be read with the channels asked for.

    Equal numbers can, grey as RGB, RGB as grey, and either without its `alpha` channel.

    Raises:
        DataError: it has `have` channels, and cannot.
    """
    if have != channels and (channels, have - (alpha and have in (2, 4))) not in (
        (3, 1),
        (3, 3),
        (1, 1),
        (1, 3),
    ):
        raise DataError(
            f"has {have} channels, but config.dataset.channels={channels}", file=file, field="dataset.channels",
            hint=f"set config.dataset.channels={have} if all images are like this one, else correct or remove it",
        )  # fmt: skip


# --- Headers ----------------------------------------------------------------------------------------------------------


def inspect_image(
    data: bytes | Path,
    file: str | Path,
    channels: int = 3,
    *,
    load: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Header:
    """What an image is.

    Args:
        data: the file's bytes, or its path.
        file: for messages only.
        channels: as what it is to be read, which tells a TIFF's or NPY's channel axis.
        load: decode every pixel, too, as `decode` does.
        max_pixels: the most pixels an image may have, 0 for any number.

    Raises:
        DataError: it cannot be read.
    """
    if load:
        decode(
            data.read_bytes() if isinstance(data, Path) else data,
            file,
            ImageOptions(channels, max_pixels=max_pixels),
        )
    kind = tell_format(_read_start(data, file, HEAD))
    if kind == "TIFF":
        with tiffs.open_tiff(data, file) as opened:
            header = _tiff_header(opened.header, file, channels)
    elif kind == "NPY":
        array = load_npy(data if isinstance(data, Path) else io.BytesIO(data), file)
        header = _array_header(array.shape, array.dtype, channels, file)
    else:
        header = _photo_header(data, file, kind)
    check_pixels(header.size, file, max_pixels)
    return header


def _photo_header(data: bytes | Path, file: str | Path, kind: str) -> Header:
    try:
        with open_picture(data, kind) as image:
            count, dtype = MODES.get(image.mode, (len(image.getbands()), "uint8"))
            if image.format == "PNG" and ";16" in str(image.tile):
                dtype = "uint16"
            if "transparency" in image.info:
                count = 4
            size, frames = image.size[::-1], count_frames(image)
    except UNREADABLE as error:
        known = isinstance(error, UnidentifiedImageError)
        raise _unreadable(file, (kind or "no known format") if known else error) from None
    if frames > 1:
        raise DataError(
            f"holds {frames} pictures of {size[1]}x{size[0]}",
            file=file,
            hint="save the one that is meant by itself",
        )
    turned = (
        kind in EXIF_PARTS
        and exif_orientation(_read_start(data, file, EXIF_WITHIN if kind == "JPEG" else -1)) >= 5
    )
    return Header(size[::-1] if turned else size, count, dtype)


def _read_start(data: bytes | Path, file: str | Path, count: int) -> bytes:
    """The first `count` bytes of a file, all of them for -1."""
    if not isinstance(data, Path):
        return data
    try:
        with data.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=file, hint=MEND_IMAGE) from None


def _tiff_header(found: tiffs.TiffHeader, file: str | Path, channels: int) -> Header:
    tiffs.check_meaning(found, file)
    header = _array_header(found.shape, found.dtype, channels, file, found.axes)
    if found.palette is not None:
        return header._replace(channels=3, dtype="uint8", alpha=True)
    return header._replace(alpha=found.alpha)


def _array_header(
    shape: tuple[int, ...], dtype: Any, channels: int, file: str | Path, axes: str = ""
) -> Header:
    """The Header of an array as `_channels_last` would read it."""
    axis = _channel_axis(shape, dtype, channels, file, axes)
    sizes = [*shape, 1] if len(shape) == 2 else [*shape[:axis], *shape[axis + 1 :], shape[axis]]
    return Header((sizes[0], sizes[1]), sizes[2], _decoded_dtype(np.dtype(dtype)), alpha=False)
