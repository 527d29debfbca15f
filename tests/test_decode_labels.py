"""Labels are the numbers that a file stores, in any format; other files are refused by name."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxseg.data.decode import decode_label, make_table, map_label
from jaxseg.data.folder_spec import FOLDER
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError

LABEL = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)
SPEC = DatasetSpec(
    "folder",
    ("ground", "box", "disc"),
    ((0, 0, 0), (1, 1, 1), (2, 2, 2)),
    {0: 0, 1: 1, 2: 2},
    FOLDER,
)
COLORS = ((10, 20, 30), (40, 50, 60), (70, 80, 90))
COLORED = dataclasses.replace(SPEC, colors=COLORS, ignored_colors=((9, 9, 9),))


def tiff(values, **options):
    data = io.BytesIO()
    tifffile.imwrite(data, values, **options)
    return data.getvalue()


def picture(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def npy(values):
    data = io.BytesIO()
    np.save(data, values)
    return data.getvalue()


def indexed(values, colors):
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([value for color in colors for value in color])
    return image


def grey_png(values, bits):
    """A PNG of grey values of few bits, which Pillow does not write."""
    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        rows += b"\0" + int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(
            -(-len(text) // 8), "big"
        )
    header = struct.pack(">IIBBBBB", *values.shape[::-1], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def classes(data, spec=SPEC):
    return map_label(
        decode_label(data, "x", spec), make_table(spec.label_map, spec.label_ranges), spec, "x"
    )


STORED = {
    "bool TIFF": (tiff(LABEL > 0), LABEL > 0),
    "MinIsWhite": (tiff(LABEL, photometric="miniswhite"), LABEL),
    "MinIsWhite of 16 bits": (tiff(LABEL.astype(np.uint16), photometric="miniswhite"), LABEL),
    "few bits of a TIFF": (tiff(LABEL, bitspersample=4), LABEL),
    "one page in three axes": (tiff(LABEL[None]), LABEL),
    "palette TIFF": (
        tiff(LABEL, photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
        LABEL,
    ),
    "JPEG 2000 without loss in a TIFF": (tiff(LABEL, compression="jpeg2000"), LABEL),
    "LERC without loss": (tiff(LABEL, compression="lerc"), LABEL),
    "LZW with predictor": (tiff(LABEL, compression="lzw", predictor=True), LABEL),
    "tiles": (tiff(LABEL, tile=(16, 16)), LABEL),
    **{
        f"orientation {n}": (tiff(LABEL, extratags=[(274, 3, 1, n, True)]), LABEL)
        for n in (2, 3, 6)
    },
    **{
        f"TIFF of {kind}": (tiff(LABEL.astype(kind)), LABEL)
        for kind in ("i1", "i8", "u8", "f2", "f4", "f8")
    },
    "big-endian": (tiff(LABEL.astype(">u4"), byteorder=">"), LABEL),
    "float NPY": (npy(LABEL.astype(np.float64)), LABEL),
    "NPY of one band": (npy(LABEL[..., None].astype(np.int64)), LABEL),
    "bool NPY": (npy(LABEL > 0), LABEL > 0),
    **{
        f"PNG of {bits} bits": (grey_png(LABEL & 2**bits - 1, bits), LABEL & 2**bits - 1)
        for bits in (1, 2, 4, 8)
    },
    "PNG of 16 bits": (picture(Image.fromarray(LABEL.astype(np.uint16)), "PNG"), LABEL),
    "palette PNG": (picture(indexed(LABEL, COLORS), "PNG"), LABEL),
    "palette PNG of few bits": (picture(indexed(LABEL, COLORS), "PNG", bits=2), LABEL),
    "PNG with EXIF": (
        picture(
            Image.fromarray(LABEL),
            "PNG",
            exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",
        ),
        LABEL,
    ),
    "palette BMP": (picture(indexed(LABEL, COLORS), "BMP"), LABEL),
    "palette GIF": (picture(indexed(LABEL, COLORS), "GIF"), LABEL),
}


@pytest.mark.parametrize("kind", STORED)
def test_labels_are_the_numbers_stored(kind):
    data, expected = STORED[kind]
    np.testing.assert_array_equal(classes(data), expected)


HOT = np.stack([i == LABEL for i in range(3)]).astype(np.uint8)
REFUSED = {  # what the message must tell: the kind, the shape or the value
    "pages": (tiff(HOT, photometric="minisblack"), "(3, 6, 8)"),
    "bands": (
        tiff(np.dstack([LABEL, LABEL]), photometric="minisblack", planarconfig="contig"),
        "(6, 8, 2)",
    ),
    "planes": (
        tiff(HOT.astype(np.uint16), photometric="minisblack", planarconfig="separate"),
        "(3, 6, 8)",
    ),
    "ImageJ stack": (tiff(HOT, imagej=True), "(3, 6, 8)"),
    "APNG": (
        picture(
            Image.fromarray(LABEL), "PNG", save_all=True, append_images=[Image.fromarray(2 - LABEL)]
        ),
        "(2, 6, 8)",
    ),
    "animated GIF": (
        picture(
            Image.fromarray(LABEL), "GIF", save_all=True, append_images=[Image.fromarray(2 - LABEL)]
        ),
        "(2, 6, 8)",
    ),
    "stack in an NPY": (npy(HOT), "(3, 6, 8)"),
    "grey with alpha": (picture(Image.fromarray(np.dstack([LABEL, LABEL])), "PNG"), "(6, 8, 2)"),
    "colours nobody declared": (
        picture(Image.fromarray(np.dstack([LABEL] * 3)), "PNG"),
        "PNG of mode RGB",
    ),
    "fractions": (tiff(LABEL + np.float32(0.25)), "0.25 at row 0, column 0"),
    "NaN": (npy(np.where(LABEL == 1, np.nan, LABEL)), "nan at row 0, column 1"),
    "complex": (tiff(LABEL.astype(np.complex64)), "complex64"),
    "text in an NPY": (npy(np.full((6, 8), "a")), "<U1"),
    "JPEG": (picture(Image.fromarray(LABEL), "JPEG"), "JPEG"),
    "JPEG in a TIFF": (tiff(LABEL, compression="jpeg"), "JPEG (in a TIFF)"),
    "LERC with loss": (
        tiff(LABEL, compression="lerc", compressionargs={"level": 2}),
        "LERC with a tolerance of 2",
    ),
    "WebP with loss": (
        picture(Image.fromarray(np.dstack([LABEL] * 3)), "WEBP", quality=50),
        "WebP with loss",
    ),
    "lossy WebP in a TIFF": (
        tiff(
            np.dstack([LABEL] * 3),
            photometric="rgb",
            compression="webp",
            compressionargs={"lossless": False, "level": 50},
        ),
        "WebP",
    ),
    "JPEG XL in a TIFF": (tiff(LABEL, compression="jpegxl"), "JPEG XL"),
    "JPEG 2000": (picture(Image.fromarray(LABEL), "JPEG2000"), "JPEG 2000"),
    "PDF": (b"%PDF-1.4 ...", "PDF"),
    "nothing": (b"", "empty file"),
    "text": (b"<html>", "no known format"),
    "half a TIFF": (
        tiff(np.tile(LABEL, (90, 90)), compression="zlib")[:-2000],
        "compression ADOBE_DEFLATE",
    ),
    "two pictures": (None, "(3, 8)"),
}


def two_pictures():
    data = io.BytesIO()
    with tifffile.TiffWriter(data) as writer:
        writer.write(LABEL, metadata=None)
        writer.write(LABEL[:3], metadata=None)
    return data.getvalue()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_label_is_named_for_what_it_is(kind):
    data, words = REFUSED[kind]
    with pytest.raises(DataError) as caught:
        classes(two_pictures() if data is None else data)
    assert (
        caught.value.file == "x"
        and words in caught.value.problem
        and "damaged" not in str(caught.value)
    )


def test_overviews_and_masks_are_no_pages():
    data = io.BytesIO()
    with tifffile.TiffWriter(data) as writer:
        writer.write(LABEL, photometric="minisblack", metadata=None)
        writer.write(LABEL[::2, ::2], subfiletype=1, metadata=None)
        writer.write(LABEL > 0, photometric="minisblack", subfiletype=4, metadata=None)
    np.testing.assert_array_equal(classes(data.getvalue()), np.where(LABEL > 0, LABEL, 255))


# --- No data ---


def with_nodata(value, dtype, text=None):
    values = LABEL.astype(dtype)
    values[0] = value
    return tiff(values, extratags=[(42113, 2, 0, text or str(value), True)])


@pytest.mark.parametrize(
    "value, dtype",
    [
        (-9999, "i2"),
        (2**32 - 1, "u4"),
        (-3.4028234663852886e38, "f4"),
        (float("nan"), "f4"),
        (7, "u1"),
        (255, "u1"),
    ],
)
def test_the_files_own_nodata_value_is_ignored(value, dtype):
    label = classes(with_nodata(value, dtype))
    assert (label[0] == 255).all()
    np.testing.assert_array_equal(label[1:], LABEL[1:])


def test_a_nodata_value_that_is_a_class_has_to_be_explained():
    with pytest.raises(DataError, match=r"GDAL_NODATA.*'ground'") as caught:
        classes(with_nodata(0, "u1"))
    assert "`0 ignore` or `0 ground`" in caught.value.hint
    explained = dataclasses.replace(SPEC, explicit_map=True)
    assert (classes(with_nodata(0, "u1"), explained)[0] == 0).all()
    ignored = dataclasses.replace(SPEC, label_map={0: 255, 1: 0, 2: 1, 3: 2}, explicit_map=True)
    assert (classes(with_nodata(0, "u1"), ignored)[0] == 255).all()
    masks = dataclasses.replace(
        SPEC, label_map={0: 0, 1: 1, 2: 2, 255: 1}, explicit_map=True
    )  # 255 is a class here
    assert (classes(with_nodata(200, "u1"), masks)[0] == 255).all()


# --- Values and maps ---


@pytest.mark.parametrize(
    "value, dtype",
    [
        (-9999, "i2"),
        (-1, "i4"),
        (-100, "i8"),
        (2**32 - 1, "u4"),
        (2**32 + 1, "i8"),
        (-2, "i1"),
        (70000, "f8"),
    ],
)
def test_unknown_values_are_reported_as_they_are(value, dtype):
    values = LABEL.astype(dtype)
    values[2, 3:5] = value
    for data in (npy(values), tiff(values)):
        with pytest.raises(
            DataError, match=rf"label value {value}, 2 pixels, first at row 2, column 3, is neither"
        ):
            classes(data)
        mapped = dataclasses.replace(SPEC, label_map=SPEC.label_map | {value: 255})
        np.testing.assert_array_equal(classes(data, mapped) == 255, values == value)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "i8", "u4"])
def test_maps_equal_a_dictionary(dtype):
    """By index, by range, and against the plain rule, over all (or many) values of a type."""
    info = np.iinfo(dtype)
    ids = {0: 0, 1: 1, 2: 2, 300: 1, 65535: 2, 65536: 0, -7: 1, 2**31: 2}
    ranges = ((-(2**31), -1000, 255), (100000, 2**32 - 1, 1)) if dtype != "u1" else ()
    ids = {raw: index for raw, index in ids.items() if not any(a <= raw <= b for a, b, _ in ranges)}
    edges = [
        v + d
        for v in (0, 255, 300, 65535, 65536, -7, -1000, 100000, 2**31, info.min, info.max)
        for d in (-1, 0, 1)
    ]
    values = np.array(sorted({v for v in edges if info.min <= v <= info.max}), dtype)[None]
    spec = dataclasses.replace(SPEC, label_map=ids, label_ranges=ranges)

    def rule(value):
        found = [index for first, last, index in ranges if first <= value <= last]
        return ids.get(value, found[0] if found else 255 if value == 255 else None)

    known = np.array([[rule(int(v)) is not None for v in values[0]]])
    expected = np.array([[rule(int(v)) for v in values[known]]], np.uint8)
    np.testing.assert_array_equal(classes(npy(values[known][None]), spec), expected)
    for value in values[~known][:3]:
        with pytest.raises(DataError, match=f"label value {value}, 1 pixels"):
            classes(npy(values[~known][values[~known] == value][None]), spec)


# --- Palettes where colours are declared ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_a_palette_of_declared_colours_is_read_by_colour(kind):
    order = (COLORS[2], COLORS[0], (9, 9, 9))  # index 0 is disc, 1 ground, 2 ignored
    np.testing.assert_array_equal(
        classes(picture(indexed(LABEL, order), kind), COLORED), np.array([2, 0, 255])[LABEL]
    )


def test_a_palette_tiff_of_declared_colours_is_read_by_colour():
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, :3] = np.array((COLORS[1], COLORS[2], COLORS[0])).T * 257
    np.testing.assert_array_equal(
        classes(tiff(LABEL, photometric="palette", colormap=colormap), COLORED),
        np.array([1, 2, 0])[LABEL],
    )


def test_another_palette_is_refused_with_the_reading_that_fits():
    with pytest.raises(
        DataError, match=r"index 1 \(16 pixels\) has the colour \(5, 6, 7\)"
    ) as caught:
        classes(picture(indexed(LABEL, (COLORS[0], (5, 6, 7), COLORS[2])), "PNG"), COLORED)
    assert "take the colours out of classes.txt" in caught.value.hint  # 0, 1 and 2 are classes
    with pytest.raises(DataError, match="are not all class numbers") as caught:
        classes(picture(indexed(LABEL + 7, (*COLORS, *[(5, 6, 7)] * 8)), "PNG"), COLORED)
    assert "declare this colour" in caught.value.hint


def test_grey_numbers_stay_numbers_where_colours_are_declared():
    np.testing.assert_array_equal(classes(picture(Image.fromarray(LABEL), "PNG"), COLORED), LABEL)


def test_a_label_of_too_many_pixels_is_refused_before_it_is_decoded():
    for data in (picture(Image.fromarray(LABEL), "PNG"), tiff(LABEL)):
        with pytest.raises(DataError, match=r"8x6 .* 48 pixels, more than 47") as caught:
            decode_label(data, "x", SPEC, max_pixels=47)
        assert caught.value.field == "dataset.max_pixels"
