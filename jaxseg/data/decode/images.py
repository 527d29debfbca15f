"""Images of any kind from their bytes, and facts in their headers.

JPEG is read with libjpeg-turbo, whose warnings count as errors, TIFF with tifffile, other photos
with OpenCV (common PNG with imagecodecs). The format is that of the bytes, not of the name.
Anything wrong with a file is a DataError that names it.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from imagecodecs import PngError, png_decode
from PIL import UnidentifiedImageError

from jaxseg.config.defaults import NO_NODATA
from jaxseg.data.decode import tiff as tiffs
from jaxseg.data.decode.formats import (
    EXIF_PARTS,
    EXIF_WITHIN,
    HEAD,
    PNG,
    UNREADABLE,
    Encoded,
    check_pixels,
    count_frames,
    detect_format,
    exif_orientation,
    open_picture,
)
from jaxseg.errors import DataError

MAX_PIXELS = 2**30  # default of `dataset.max_pixels`: 3 GB of RGB
MEND_IMAGE = "replace it, or remove it and its label"
BGRA_ORDER = [2, 1, 0, 3]  # OpenCV's channels as RGBA
GLUED = b"\xff\xd9\xff\xd8\xff"  # the end of a JPEG and the beginning of another
MULTI_PICTURE = b"MPF\0"  # a JPEG with others appended: previews, the other eye, a gain map
# Pillow's mode -> (channels, dtype); 16-bit PNGs are recognised by their tile, as Pillow reduces
# them to 8 bits.
MODES = {
    "1": (1, "uint8"),
    "L": (1, "uint8"),
    "LA": (4, "uint8"),
    "P": (3, "uint8"),
    "PA": (4, "uint8"),
    "RGB": (3, "uint8"),
    "RGBA": (4, "uint8"),
    "CMYK": (3, "uint8"),
    "YCbCr": (3, "uint8"),
    "I": (1, "uint16"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
    "F": (1, "float32"),
}
# EXIF's orientation -> (quarter turns counter-clockwise, whether mirrored left to right
# afterwards).
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
    """Size and type of an image, without its pixels.

    Attributes:
        size: (H, W) in pixels, orientation applied.
        channels: Number of channels in the file.
        dtype: Data type once decoded: "uint8", "uint16" or "float32".
        alpha: Whether the last of 2 or 4 channels is transparency, which may be dropped.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    alpha: bool = True


class Decoded(NamedTuple):
    """An image as it is in its file.

    Attributes:
        pixels: uint8, uint16 or float32 [H, W, C].
        missing: bool [H, W, C], True where the file holds no data; None if it has no such place.
    """

    pixels: np.ndarray
    missing: np.ndarray | None = None

    @property
    def empty(self) -> np.ndarray | None:
        """Where no channel holds data: bool [H, W], or None if there is no such pixel."""
        if self.missing is None:
            return None
        empty = np.asarray(self.missing.all(-1))
        return empty if empty.any() else None

    def filled(self, fill: Sequence[float] = ()) -> np.ndarray:
        """Return the pixels [H, W, C], missing data filled in.

        Args:
            fill: [C] values; () for the mean of the channel's other values.
        """
        if self.missing is None:
            return self.pixels
        pixels = self.pixels.copy()
        for channel in range(pixels.shape[-1]):
            holes = self.missing[..., channel]
            value = 0.0
            if fill:
                value = fill[channel]
            elif not holes.all():
                value = self.pixels[..., channel].mean(where=~holes, dtype=np.float64)
            pixels[holes, channel] = value if pixels.dtype.kind == "f" else np.rint(value)
        return pixels


class ImageOptions(NamedTuple):
    """How the images of a data set are read.

    Attributes:
        channels: 3 gives RGB: grey is repeated, transparency dropped. 1 gives grey, converted from
            colours if necessary. 4 gives RGBA, or any four. Another number must be that of the TIFF
            or NPY file.
        nodata: Values that stand for missing data (`dataset.nodata`), in addition to those that
            TIFF files declare; ("none",) for no value at all.
        max_pixels: Largest number of pixels of an image, 0 for no limit.
        fill: [C] values for missing data, () for the mean of the image's other values.
    """

    channels: int = 3
    nodata: tuple[Any, ...] = ()
    max_pixels: int = MAX_PIXELS
    fill: tuple[float, ...] = ()


RGB = ImageOptions()


# --- Pixels ---


def decode_image(data: Encoded, file: str | Path, channels: int = 3) -> np.ndarray:
    """Decode an image and fill its missing data with the mean of each channel.

    Args:
        data: The file's bytes.
        file: Named in messages.
        channels: Number of channels; see `ImageOptions`.

    Returns:
        uint8, uint16 or float32 [H, W, channels].

    Raises:
        DataError: See `decode`.
    """
    return decode(data, file, ImageOptions(channels)).filled()


def decode(data: Encoded, file: str | Path, options: ImageOptions = RGB) -> Decoded:
    """Decode an image.

    Args:
        data: The file's bytes.
        file: Named in messages.
        options: How it is read.

    Returns:
        Pixels of uint8 or uint16 as in the file, other numbers as float32, and where data are
        missing.

    Raises:
        DataError: It cannot be read, does not fit the options, or has too many pixels.
    """
    kind = detect_format(data)
    channels, nodata, max_pixels, _ = options
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
    """Decode a JPEG.

    libjpeg continues after damage, with grey or shifted pixels; simplejpeg turns its warnings into
    errors.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        check_pixels((height, width), file, max_pixels)
        cmyk = space in ("CMYK", "YCCK")
        wanted = "GRAY" if channels == 1 else "RGB"
        pixels = simplejpeg.decode_jpeg(data, "CMYK" if cmyk else wanted, strict=True)
    except DataError:
        raise
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
    """Rotate and mirror a picture.

    Args:
        pixels: [H, W, C].
        orientation: EXIF's orientation, 1 to 8.

    Returns:
        A view [H, W, C] or [W, H, C] of the pixels.
    """
    quarters, mirrored = TURNS[orientation]
    pixels = np.rot90(pixels, quarters) if quarters else pixels
    return pixels[:, ::-1] if mirrored else pixels


def _is_plain_png(data: Encoded) -> bool:
    """Return whether a PNG is RGB of 8 bits, without transparency, orientation or more pictures."""
    if data[:8] != PNG or data[24:26] != b"\x08\x02":
        return False
    at = 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if kind in (b"tRNS", b"eXIf", b"acTL"):
            return False
        if kind == b"IDAT":  # the others precede it, except for a rare eXIf at the end
            return b"eXIf" not in bytes(data[-(1 << 16) :])
        at += size + 12
    return True


def _decode_png(data: Encoded, file: str | Path, max_pixels: int) -> np.ndarray:
    """Decode a plain PNG."""
    height, width = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    check_pixels((height, width), file, max_pixels)
    try:
        # Up to a quarter faster than OpenCV's libpng; it takes any buffer.
        return png_decode(data)  # type: ignore[arg-type]
    except (PngError, ValueError) as error:  # libpng's message may not be text
        raise _unreadable(file, error) from None


def _decode_photo(data: Encoded, file: str | Path, channels: int, max_pixels: int) -> np.ndarray:
    """Decode anything else that OpenCV reads."""
    inspect_image(data, file, max_pixels=max_pixels)
    flags = cv2.IMREAD_UNCHANGED
    if channels == 3:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
    elif channels == 1:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise _unreadable(file, f"{len(data)} bytes, {detect_format(data) or 'no known format'}")
    image = image[..., None] if image.ndim == 2 else image
    if channels not in (1, 3) and image.shape[2] > 2:
        image = image[..., BGRA_ORDER[: image.shape[2]]]
    image = np.ascontiguousarray(turn(image, exif_orientation(data)))
    return image if image.shape[2] == channels else _fit(Decoded(image), channels, file).pixels


def _unreadable(file: str | Path, reason: object) -> DataError:
    return DataError(f"cannot be read as an image ({reason})", file=file, hint=MEND_IMAGE)


# --- Arrays of numbers ---


def _decode_tiff(
    data: Encoded, file: str | Path, channels: int, nodata: Sequence[Any], max_pixels: int
) -> Decoded:
    """Decode a TIFF, with the no-data value and the mask that it declares."""
    with tiffs.open_tiff(data, file) as opened:
        header = _tiff_header(opened.header, file, channels)
        check_pixels(header.size, file, max_pixels)
        stored, mask, tags = opened.read(), opened.mask(), opened.header
    if tags.palette is not None:
        return _fit(Decoded(tags.palette[stored.astype(np.intp)]), channels, file)
    declared = nodata != NO_NODATA
    if declared and tags.nodata is not None:
        nodata = (*nodata, tags.nodata)
    image = mark_missing(_channels_last(stored, tags.shape, channels, file, tags.axes), nodata)
    if declared and mask is not None and not mask.all():
        missing = np.broadcast_to(~mask[..., None], image.pixels.shape)
        if image.missing is not None:
            missing = image.missing | missing
        image = image._replace(missing=missing)
    return _fit(image, channels, file, tags.alpha)


def load_npy(stream: Any, file: str | Path) -> np.ndarray:
    """Return the array of an .npy file.

    Args:
        stream: A binary stream, or the file's path, from which the array is memory-mapped.
        file: Named in messages.

    Raises:
        DataError: It cannot be read.
    """
    mode: Literal["r"] | None = "r" if isinstance(stream, Path) else None
    try:
        return np.load(stream, mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # NumPy raises errors of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot be read as a NumPy array ({reason})", file=file, hint=MEND_IMAGE
        ) from None


def _channel_axis(
    shape: tuple[int, ...], dtype: Any, channels: int, file: str | Path, axes: str = ""
) -> int:
    """Return the axis of channels of an array that is an image; raise DataError for another one."""
    if len(shape) not in (2, 3) or not np.prod(shape) or np.dtype(dtype).kind not in "buif":
        raise DataError(
            f"an array {tuple(shape)} of {dtype}; an image is [H, W] or [H, W, channels], of "
            "numbers",
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
    """Return a stored array as [H, W, C], in its own dtype."""
    axis = _channel_axis(shape, array.dtype, channels, file, axes)
    return array[..., None] if array.ndim == 2 else np.moveaxis(array, axis, -1)


def mark_missing(values: np.ndarray, nodata: Sequence[Any]) -> Decoded:
    """Return values as an image, with a mask of the no-data values.

    They are compared in their own precision, before they become float32.

    Args:
        values: [H, W, C] of any dtype.
        nodata: Values that stand for missing data; ("none",) for none.
    """
    missing = None
    for value in () if nodata == NO_NODATA else nodata:
        found = tiffs.equals_nodata(values, float(value))
        if found.any():
            missing = found if missing is None else missing | found
    # A float64 beyond float32 becomes infinite, which values.check_finite reports.
    with np.errstate(over="ignore"):
        return Decoded(np.ascontiguousarray(values, _decoded_dtype(values.dtype)), missing)


def _decoded_dtype(dtype: np.dtype) -> str:
    """Return the dtype of an image once decoded; one bit becomes the numbers 0 and 1."""
    if dtype.kind == "b":
        return "uint8"
    return dtype.name if dtype.name in ("uint8", "uint16") else "float32"


def _fit(image: Decoded, channels: int, file: str | Path, alpha: bool = True) -> Decoded:
    """Return an image with this number of channels; raise DataError if it cannot be converted."""
    have = image.pixels.shape[2]
    check_channels(have, channels, file, alpha)
    if have == channels:
        return image
    pixels, missing = image
    if channels == 1 and have > 2:
        pixels = pixels[..., :3].mean(-1, keepdims=True).astype(pixels.dtype)
        if missing is not None:
            missing = np.asarray(missing[..., :3].any(-1, keepdims=True))
        return Decoded(pixels, missing)
    chosen = [0, 0, 0]  # grey as RGB
    if channels == 1:
        chosen = [0]
    elif have == 4:
        chosen = [0, 1, 2]
    return Decoded(pixels[..., chosen], missing if missing is None else missing[..., chosen])


def check_channels(have: int, channels: int, file: str | Path, alpha: bool = True) -> None:
    """Refuse an image that cannot be converted to a number of channels.

    It can if the numbers are equal, or, after dropping `alpha`, from grey to RGB and back.

    Args:
        have: Channels of the image.
        channels: Channels wanted.
        file: Named in the message.
        alpha: Whether the last of 2 or 4 channels is transparency.

    Raises:
        DataError: It cannot be converted.
    """
    if have == channels:
        return
    colors = have - 1 if alpha and have in (2, 4) else have
    if colors in (1, 3) and channels in (1, 3):
        return
    raise DataError(
        f"has {have} channels, but config.dataset.channels={channels}",
        file=file,
        field="dataset.channels",
        hint=f"set config.dataset.channels={have} if all images are like this one, else correct or "
        "remove it",
    )


# --- Headers ---


def inspect_image(
    data: Encoded | Path,
    file: str | Path,
    channels: int = 3,
    *,
    load: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Header:
    """Return the size and type of an image.

    Args:
        data: The file's bytes, or its path.
        file: Named in messages.
        channels: Channels that it will be read with, which shows the channel axis of a TIFF or NPY.
        load: Also decode every pixel, as `decode` does.
        max_pixels: Largest number of pixels of an image, 0 for no limit.

    Raises:
        DataError: It cannot be read.
    """
    if load:
        encoded = data.read_bytes() if isinstance(data, Path) else data
        decode(encoded, file, ImageOptions(channels, max_pixels=max_pixels))
    kind = detect_format(_read_start(data, file, HEAD))
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


def _photo_header(data: Encoded | Path, file: str | Path, kind: str) -> Header:
    """Return the header of a picture that Pillow opens."""
    try:
        with open_picture(data, kind) as image:
            count, dtype = MODES.get(image.mode, (len(image.getbands()), "uint8"))
            if image.format == "PNG" and ";16" in str(getattr(image, "tile", "")):
                dtype = "uint16"
            if "transparency" in image.info:
                count = 4
            (width, height), frames = image.size, count_frames(image)
    except UnidentifiedImageError:
        raise _unreadable(file, kind or "no known format") from None
    except UNREADABLE as error:
        raise _unreadable(file, error) from None
    if frames > 1:
        raise DataError(
            f"holds {frames} pictures of {width}x{height}",
            file=file,
            hint="save the one that is meant by itself",
        )
    if kind in EXIF_PARTS:
        start = _read_start(data, file, EXIF_WITHIN if kind == "JPEG" else -1)
        if exif_orientation(start) >= 5:  # a quarter turn
            height, width = width, height
    return Header((height, width), count, dtype)


def _read_start(data: Encoded | Path, file: str | Path, count: int) -> Encoded:
    """Return the first `count` bytes of a file, all of them for -1."""
    if not isinstance(data, Path):
        return data
    try:
        with data.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=file, hint=MEND_IMAGE) from None


def _tiff_header(found: tiffs.TiffHeader, file: str | Path, channels: int) -> Header:
    """Return the header of a TIFF as `_decode_tiff` would read it."""
    tiffs.check_meaning(found, file)
    header = _array_header(found.shape, found.dtype, channels, file, found.axes)
    if found.palette is not None:
        return header._replace(channels=3, dtype="uint8", alpha=True)
    return header._replace(alpha=found.alpha)


def _array_header(
    shape: tuple[int, ...], dtype: Any, channels: int, file: str | Path, axes: str = ""
) -> Header:
    """Return the header of an array as `_channels_last` would read it."""
    axis = _channel_axis(shape, dtype, channels, file, axes)
    sizes = [*shape, 1] if len(shape) == 2 else [*shape[:axis], *shape[axis + 1 :], shape[axis]]
    return Header((sizes[0], sizes[1]), sizes[2], _decoded_dtype(np.dtype(dtype)), alpha=False)
