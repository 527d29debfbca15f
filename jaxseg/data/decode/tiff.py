"""TIFF files as the numbers they store: no value inverted, turned, stretched or coloured, no page or band dropped."""

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

from jaxseg.data.decode.formats import NODATA_TAG, lossy_coding
from jaxseg.errors import DataError

PHOTOMETRIC = tifffile.PHOTOMETRIC
# Samples that are values or red, green and blue as they stand; a palette's are indices.
PLAIN = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)
JPEG_CODINGS = (
    tifffile.COMPRESSION.OJPEG,
    tifffile.COMPRESSION.JPEG,
)  # whose decoder makes RGB of YCbCr
MEND = "write it anew, or take it out"
LERC_PARAMETERS = 50674  # tag: (version, what compresses the LERC data further)
LERC_WRAPPERS = {1: zlib_decode, 2: zstd_decode}


class TiffHeader(NamedTuple):
    """What a TIFF stores, without its values.

    Attributes:
        shape: of the array, as stored: (H, W), or with an axis of samples, bands or pages.
        dtype: of its values.
        axes: tifffile's letters for `shape`; "S" are samples of a pixel.
        photometric: what its values mean, e.g. "RGB" or "MINISWHITE".
        compression: e.g. "LZW".
        alpha: whether the last samples are extra ones, declared as transparency or the like.
        palette: uint8 [N, 3] colours of the indices, None where values are no indices.
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
            tuple(self._series.shape), np.dtype(self._series.dtype), self._series.axes, _name(page.photometric),
            _name(page.compression), any(page.extrasamples), palette, _parse_nodata(page),
        )  # fmt: skip

    def _check_chain(self) -> None:
        """Refuse directories that go round in a circle, which tifffile follows for ever."""
        form, stream, seen = self._tiff.tiff, self._tiff.filehandle, set()
        stream.seek(form.offsetsize if form.version == 42 else 8)
        while len(raw := stream.read(form.offsetsize)) == form.offsetsize and (
            offset := struct.unpack(form.offsetformat, raw)[0]
        ):
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
            stream.seek(
                offset + form.tagnosize + form.tagsize * struct.unpack(form.tagnoformat, raw)[0]
            )

    def _one_series(self) -> tifffile.TiffPageSeries:
        """The pages that hold the picture; overviews and masks, which are marked as such, are none."""
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
        """The values as stored; shape and dtype are the header's."""
        return self._series.asarray()

    def mask(self) -> np.ndarray | None:
        """bool [H, W], True where the file's own mask says that there are data; None if it has no mask."""
        size = self._page.imagelength, self._page.imagewidth
        masks = [
            page
            for page in self._tiff.pages
            if page.keyframe.is_mask and not page.keyframe.is_reduced
        ]
        if not masks or (masks[0].imagelength, masks[0].imagewidth) != size:
            return None
        return masks[0].asarray().reshape(size) > 0

    def lossy(self) -> str:
        """The coding that changed its numbers, "" if none did."""
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
            start = LERC_WRAPPERS[wrapper.value[1]](start)
        return lossy_coding(start) or (
            "JPEG" if page.compression in JPEG_CODINGS and start[:2] != b"\xff\xd8" else ""
        )


@contextlib.contextmanager
def open_tiff(data: bytes | Path, file: object) -> Iterator[Tiff]:
    """The TIFF in `data`, bytes or a path, for as long as the block lasts; `file` is for messages.

    Raises:
        DataError: it cannot be read, then with its type and compression where these are known, or holds several pictures.
    """
    known = ""
    try:
        with tifffile.TiffFile(data if isinstance(data, Path) else io.BytesIO(data)) as opened:
            tiff = Tiff(opened, file)
            known = f" of {describe(tiff.header)}"
            yield tiff
    except DataError:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever their parsing runs into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot be read as a TIFF{known} ({reason})", file=file, hint=MEND
        ) from None


def describe(header: TiffHeader) -> str:
    """A TIFF's type in words: "float32 (20, 24, 5), MINISBLACK, compression LZW"."""
    return f"{header.dtype} {header.shape}, {header.photometric}, compression {header.compression}"


def check_meaning(header: TiffHeader, file: object) -> None:
    """Refuse values that are neither numbers of bands nor red, green and blue: inks, lightness, raw sensors.

    Raises:
        DataError: with the TIFF's photometric interpretation.
    """
    names = [value.name for value in PLAIN]
    decoded = header.photometric == PHOTOMETRIC.YCBCR.name and header.compression in [
        value.name for value in JPEG_CODINGS
    ]
    if header.photometric not in names and not decoded:
        raise DataError(
            f"is a TIFF of {describe(header)}: its values are no colours of light",
            file=file,
            hint="save it as RGB or grey",
        )


def _name(value: object) -> str:
    return str(getattr(value, "name", value))


def _parse_nodata(page: tifffile.TiffPage) -> float | None:
    """The value of GDAL's tag; one that is no number, as some programs write, says nothing."""
    tag = page.tags.get(NODATA_TAG)
    try:
        return None if tag is None else float(str(tag.value).strip(" \0").replace(",", "."))
    except ValueError:
        return None


def equals_nodata(values: np.ndarray, nodata: float) -> np.ndarray:
    """bool, where values [...] are the no-data value, in the precision that their type has.

    Programs print the value with fewer digits than it has; floats may therefore differ by a millionth.
    """
    if math.isnan(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind != "f":
        info = np.iinfo(values.dtype) if values.dtype.kind in "iu" else None
        possible = nodata.is_integer() and (info is None or info.min <= nodata <= info.max)
        return (
            values == values.dtype.type(int(nodata)) if possible else np.zeros(values.shape, bool)
        )
    largest = float(np.finfo(values.dtype).max)
    if math.isinf(nodata) or abs(nodata) >= largest * (
        1 - 1e-6
    ):  # what does not fit is the type's largest, or infinity
        return (values <= -largest * (1 - 1e-6)) if nodata < 0 else (values >= largest * (1 - 1e-6))
    low, high = sorted((nodata * (1 - 1e-6), nodata * (1 + 1e-6)))
    return (values >= values.dtype.type(low)) & (values <= values.dtype.type(high))
