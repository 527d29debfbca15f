"""The format of a file by its bytes, and its header: orientation, lossy coding, frames."""

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from jaxseg.errors import DataError

# Threads read files while others import TFDS, which temporarily replaces __import__: Pillow's
# plug-ins, which it imports at first use, must be imported before.
Image.preinit()
# Formats that Pillow opens, by its classes rather than Image.open, which has a limit of its own
# (Image.MAX_IMAGE_PIXELS, for the host program to set) that aerial photos exceed.
# `check_pixels` is our limit.
OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}
# What Pillow raises for damaged files: its own errors, and what its parsing runs into.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
)

Encoded = bytes | memoryview  # the content of a file; a view of a larger buffer is not copied

NPY = b"\x93NUMPY"
PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
HEAD = 1024  # bytes in which the format is recognised
# Format -> how its files begin; the first match counts. Short signatures are extended, as a
# notes.txt may begin with BM or P1.
SIGNATURES = {
    name: re.compile(start, re.DOTALL)
    for name, start in {
        "JPEG": rb"\xff\xd8\xff(?!\xf7)",
        "PNG": rb"\x89PNG\r\n\x1a\n",
        "camera raw": rb"II\*\0.{4}CR|IIRO|IIU\0|MMOR|FUJIFILM",
        "TIFF": rb"II[*+]\0|MM\0[*+]",
        "NPY": rb"\x93NUMPY",
        "WebP": rb"RIFF.{4}WEBP",
        "GIF": rb"GIF8[79]a",
        "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
        "PNM": rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s",
        "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
        "JPEG-LS": rb"\xff\xd8\xff\xf7",
        "JPEG XR": rb"II\xbc\x01",
        "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
        "AVIF": rb".{4}ftypavi[fs]",
        "HEIC": rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)",
        "Photoshop": rb"8BPS",
        "GIMP": rb"gimp xcf",
        "OpenEXR": rb"v/1\x01",
        "Radiance HDR": rb"#\?(?:RADIANCE|RGBE)",
        "PAM": rb"P7\s+WIDTH",
        "PFM": rb"P[Ff]\s+\d+\s+\d+\s",
        "DICOM": rb".{128}DICM",
        "FITS": rb"SIMPLE  =",
        "PDF": rb"%PDF-",
        "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
        "SVG": rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?>\s*)?"
        rb"(?:<!--.*?-->\s*|<!DOCTYPE svg.*?>\s*)*<svg",
        "HDF5": rb"\x89HDF",
        "ZIP": rb"PK\x03\x04",
    }.items()
}
# Formats that `decode_image` reads.
IMAGE_FORMATS = ("JPEG", "PNG", "NPY", "TIFF", "GIF", "BMP", "WebP", "PNM", "JPEG 2000")
NO_PICTURES = ("PDF", "PostScript", "SVG", "HDF5", "ZIP")  # no photos, even if they hold pictures

ORIENTATION = 0x0112  # the EXIF tag
EXIF_WITHIN = 1 << 18  # bytes of a JPEG in which EXIF, its first or second segment, is looked for
NODATA_TAG = 42113  # of GDAL in TIFF: the value of pixels without data
# Version of a LERC blob -> offset of its tolerance.
LERC_TOLERANCE = {2: 34, 3: 38, 4: 42, 5: 42, 6: 50}


def detect_format(data: Encoded) -> str:
    """Return the format of a file, "JPEG", "PNG", ..., or "" if it is not known.

    Args:
        data: Its bytes; the first `HEAD` are enough.
    """
    head = bytes(data[:HEAD])
    return next((name for name, start in SIGNATURES.items() if start.match(head)), "")


def open_picture(data: Encoded | Path, kind: str) -> Image.Image:
    """Open an encoded picture with Pillow, without its limit on pixels.

    Args:
        data: The file's bytes, or its path.
        kind: The format, from `detect_format`.

    Raises:
        UNREADABLE: Pillow cannot read it; UnidentifiedImageError if it is not of this format.
    """
    if kind not in OPENERS:
        return Image.open(data if isinstance(data, Path) else io.BytesIO(data))
    try:
        return OPENERS[kind](data if isinstance(data, Path) else io.BytesIO(data))
    except (SyntaxError, IndexError, TypeError, struct.error) as error:  # as Image.open does
        raise UnidentifiedImageError(str(error)) from error


def exif_orientation(data: Encoded) -> int:
    """Return how a viewer rotates and mirrors a picture: EXIF's orientation, 1 (not at all) to 8.

    Other values count as 1, as in viewers. Only EXIF counts, in JPEG, PNG and WebP: XMP repeats the
    tag, but most programs that show or write photos ignore it there. A TIFF's tag is not read: its
    pixels are numbers as stored.

    Args:
        data: The file's bytes; of a JPEG the first `EXIF_WITHIN` are enough.
    """
    parts = EXIF_PARTS.get(detect_format(data))
    raw = next(parts(data), b"") if parts else b""
    if not raw:
        return 1
    exif = Image.Exif()
    try:
        exif.load(raw if raw.startswith(b"Exif") else b"Exif\0\0" + raw)
        value = exif.get(ORIENTATION, 1)
    except UNREADABLE:  # a damaged EXIF has no effect
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _jpeg_exif(data: Encoded) -> Iterator[bytes]:
    """Yield the EXIF blocks of a JPEG."""
    at = 2
    while (
        at + 4 <= min(len(data), EXIF_WITHIN)
        and data[at] == 0xFF
        and data[at + 1] not in (0xD9, 0xDA)
    ):
        if data[at + 1] == 0xFF:  # padding
            at += 1
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and bytes(data[at + 4 : at + 10]) == b"Exif\0\0":
            yield bytes(data[at + 4 : at + 2 + size])
        at += 2 + size


def _png_exif(data: Encoded) -> Iterator[bytes]:
    """Yield the EXIF blocks of a PNG."""
    at = len(PNG)
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            yield bytes(data[at + 8 : at + 8 + size])
        at += size + 12


def _webp_exif(data: Encoded) -> Iterator[bytes]:
    """Yield the EXIF blocks of a WebP."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            yield bytes(data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2


EXIF_PARTS = {"JPEG": _jpeg_exif, "PNG": _png_exif, "WebP": _webp_exif}


def check_pixels(size: tuple[int, int], file: object, limit: int) -> None:
    """Refuse an image that would fill the memory, before it is decoded.

    Args:
        size: (height, width) in the header.
        file: Named in the message.
        limit: Largest number of pixels (`dataset.max_pixels`); 0 for no limit.

    Raises:
        DataError: The image has more.
    """
    if limit and size[0] * size[1] > limit:
        raise DataError(
            f"{size[1]}x{size[0]} (width x height) are {size[0] * size[1]} pixels, more than "
            f"{limit}",
            file=file,
            field="dataset.max_pixels",
            hint="if the file is meant to be so large, raise config.dataset.max_pixels",
        )


def count_frames(image: Image.Image) -> int:
    """Return the number of pictures in an animated GIF, PNG or WebP; other formats hold one."""
    return getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "WEBP") else 1


def lossy_coding(data: bytes) -> str:
    """Return the coding that changed the numbers of a picture, "" if none did.

    Formats that can be lossless or lossy declare it: WebP, JPEG 2000 by its wavelet, LERC by its
    tolerance, JPEG by its process. JPEG XL and JPEG XR do not in an accessible place, so they count
    as lossy.

    Args:
        data: An encoded picture: a file, or a strip of a TIFF.
    """
    kind = detect_format(data)
    if kind == "JPEG":
        return "" if b"\xff\xc3" in data[:4096] else "JPEG"  # SOF3 is the lossless process
    if kind == "WebP":
        return "" if b"VP8L" in data[:64] else "WebP with loss"
    if kind == "JPEG 2000":
        # The 10th byte after the length of the segment COD is the wavelet; 1 is reversible.
        at = data.find(b"\xff\x52")
        reversible = at >= 0 and len(data) > at + 13 and data[at + 13] == 1
        return "" if reversible else "JPEG 2000 with loss"
    if data[:6] == b"Lerc2 ":
        return _lossy_lerc(data)
    return f"{kind}, with loss or not" if kind in ("JPEG XL", "JPEG XR", "AVIF", "HEIC") else ""


def _lossy_lerc(data: bytes) -> str:
    """Return a description of a LERC blob whose tolerance is above 0.5, "" for any other.

    The tolerance is how far a value may be off; 0.5 or less keeps whole numbers.
    """
    version = struct.unpack_from("<i", data, 6)[0]
    at = LERC_TOLERANCE.get(version, len(data))
    tolerance = struct.unpack_from("<d", data, at)[0] if len(data) >= at + 8 else 1.0
    return "" if 0 <= tolerance <= 0.5 else f"LERC with a tolerance of {tolerance:g}"
