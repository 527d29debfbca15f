"""TIFF files as the numbers that they store.

No value is inverted, rotated, stretched or coloured, and no page or band is dropped.
"""

import contextlib
import io
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from imagecodecs import zlib_decode, zstd_decode

from jaxseg.data.decode.formats import NODATA_TAG, Encoded, lossy_coding
from jaxseg.errors import DataError

PHOTOMETRIC = tifffile.PHOTOMETRIC
# Samples that are values, or red, green and blue, as stored; those of a palette are indices.
PLAIN = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)
# Their decoder converts YCbCr to RGB.
JPEG_CODINGS = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)
MEND = "save it again, or remove it"
LERC_PARAMETERS = 50674  # tag: (version, further compression of the LERC data)
LERC_WRAPPERS = {1: zlib_decode, 2: zstd_decode}


class TiffHeader(NamedTuple):
    """The type of a TIFF, without its values.

    Attributes:
        shape: Shape of the stored array: (H, W), or with an axis of samples, bands or pages.
        dtype: Data type of its values.
        axes: tifffile's letters for `shape`; "S" are the samples of a pixel.
        photometric: Meaning of the values, e.g. "RGB" or "MINISWHITE".
        compression: E.g. "LZW".
        alpha: Whether the last samples are extra ones, declared as transparency or similar.
        palette: uint8 [N, 3] colours of the indices, None if the values are not indices.
        nodata: GDAL's value of pixels without data, None without such a tag.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str
    photometric: str
    compression: str
    alpha: bool
    palette: np.ndarray | None
    nodata: float | None


class Tiff:
    """An opened TIFF that holds one picture; see `open_tiff`."""

    def __init__(self, tiff: tifffile.TiffFile, file: object):
        self._tiff, self._file = tiff, file
        self._check_chain()
        self._series = self._one_series()
        self._page = page = self._series.keyframe
        palette = None
        if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
            palette = (page.colormap.T >> 8).astype(np.uint8)
        self.header = TiffHeader(
            tuple(self._series.shape),
            np.dtype(self._series.dtype),
            self._series.axes,
            _name(page.photometric),
            _name(page.compression),
            any(page.extrasamples),
            palette,
            _parse_nodata(page),
        )

    def _check_chain(self) -> None:
        """Refuse directories that form a cycle, which tifffile follows forever."""
        form, stream = self._tiff.tiff, self._tiff.filehandle
        seen: set[int] = set()
        stream.seek(form.offsetsize if form.version == 42 else 8)
        while len(raw := stream.read(form.offsetsize)) == form.offsetsize:
            offset = struct.unpack(form.offsetformat, raw)[0]
            if not offset:
                return
            if offset in seen:
                raise DataError(
                    "cannot be read as a TIFF (its directories go round in a circle)",
                    file=self._file,
                    hint=MEND,
                )
            seen.add(offset)
            stream.seek(offset)
            raw = stream.read(form.tagnosize)
            if len(raw) < form.tagnosize:
                return
            tags = struct.unpack(form.tagnoformat, raw)[0]
            stream.seek(offset + form.tagnosize + form.tagsize * tags)

    def _one_series(self) -> tifffile.TiffPageSeries:
        """Return the pages that hold the picture; overviews and masks are marked as such."""
        found = [s for s in self._tiff.series if not (s.keyframe.is_reduced or s.keyframe.is_mask)]
        if not found:
            raise DataError(
                "cannot be read as a TIFF (no picture in it)", file=self._file, hint=MEND
            )
        if len(found) > 1:
            shapes = ", ".join(str(tuple(s.shape)) for s in found)
            raise DataError(
                f"is a TIFF of {len(found)} pictures ({shapes})",
                file=self._file,
                hint="save the one that is meant by itself",
            )
        return found[0]

    def read(self) -> np.ndarray:
        """Return the values as stored, of the header's shape and dtype."""
        return self._series.asarray()

    def mask(self) -> np.ndarray | None:
        """Return the file's own mask: bool [H, W], True where there are data; None without one."""
        size = self._page.imagelength, self._page.imagewidth
        for page in self._tiff.pages:
            keyframe = page.keyframe
            if keyframe is None or not keyframe.is_mask or keyframe.is_reduced:
                continue
            same = (keyframe.imagelength, keyframe.imagewidth) == size
            return page.asarray().reshape(size) > 0 if same else None
        return None

    def lossy(self) -> str:
        """Return the coding that changed the numbers, "" if none did."""
        page = self._page
        offset, size = next(
            (pair for pair in zip(page.dataoffsets, page.databytecounts, strict=True) if pair[1]),
            (0, 0),
        )
        if not size:
            return ""  # a sparse file that stores nothing
        self._tiff.filehandle.seek(offset)
        start = self._tiff.filehandle.read(min(size, 1 << 16))
        wrapper = page.tags.get(LERC_PARAMETERS)
        if wrapper is not None and len(wrapper.value) > 1 and wrapper.value[1] in LERC_WRAPPERS:
            start = bytes(LERC_WRAPPERS[wrapper.value[1]](start))
        if coding := lossy_coding(start):
            return coding
        shared_tables = page.compression in JPEG_CODINGS and start[:2] != b"\xff\xd8"
        return "JPEG" if shared_tables else ""


@contextlib.contextmanager
def open_tiff(data: Encoded | Path, file: object) -> Iterator[Tiff]:
    """Open a TIFF for the block.

    Args:
        data: The file's bytes, or its path.
        file: Named in messages.

    Raises:
        DataError: It cannot be read (then with its type and compression if these are known), or
            holds several pictures.
    """
    known = ""
    try:
        with tifffile.TiffFile(data if isinstance(data, Path) else io.BytesIO(data)) as opened:
            tiff = Tiff(opened, file)
            known = f" of {describe(tiff.header)}"
            yield tiff
    except DataError:
        raise
    except Exception as error:  # tifffile and its codecs raise errors of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot be read as a TIFF{known} ({reason})", file=file, hint=MEND
        ) from None


def describe(header: TiffHeader) -> str:
    """Describe the type of a TIFF: "float32 (20, 24, 5), MINISBLACK, compression LZW"."""
    return f"{header.dtype} {header.shape}, {header.photometric}, compression {header.compression}"


def check_meaning(header: TiffHeader, file: object) -> None:
    """Refuse values that are neither bands nor red, green and blue, such as inks or lightness.

    Args:
        header: The type of the TIFF.
        file: Named in messages.

    Raises:
        DataError: They are neither; the message gives the photometric interpretation.
    """
    names = [value.name for value in PLAIN]
    decoded = header.photometric == PHOTOMETRIC.YCBCR.name and header.compression in [
        value.name for value in JPEG_CODINGS
    ]
    if header.photometric not in names and not decoded:
        raise DataError(
            f"is a TIFF of {describe(header)}: its values are not colours of light",
            file=file,
            hint="save it as RGB or grey",
        )


def _name(value: object) -> str:
    return str(getattr(value, "name", value))


def _parse_nodata(page: tifffile.TiffPage) -> float | None:
    """Return the value of GDAL's tag, None if it is not a number, which some programs write."""
    tag = page.tags.get(NODATA_TAG)
    try:
        return None if tag is None else float(str(tag.value).strip(" \0").replace(",", "."))
    except ValueError:
        return None


def equals_nodata(values: np.ndarray, nodata: float) -> np.ndarray:
    """Return where values equal the no-data value, in the precision of their dtype.

    Programs write the value with fewer digits than it has, so floats may differ by a millionth.

    Args:
        values: Numbers of any shape and dtype.
        nodata: The no-data value.

    Returns:
        bool array of the same shape.
    """
    if math.isnan(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind != "f":
        info = np.iinfo(values.dtype) if values.dtype.kind in "iu" else None
        possible = nodata.is_integer() and (info is None or info.min <= nodata <= info.max)
        return (
            values == values.dtype.type(int(nodata)) if possible else np.zeros(values.shape, bool)
        )
    largest = float(np.finfo(values.dtype).max) * (1 - 1e-6)
    if abs(nodata) >= largest:  # a value that does not fit is stored as the largest, or infinity
        return values <= -largest if nodata < 0 else values >= largest
    low, high = sorted((nodata * (1 - 1e-6), nodata * (1 + 1e-6)))
    return (values >= values.dtype.type(low)) & (values <= values.dtype.type(high))
