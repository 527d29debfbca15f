"""Which files of a folder are images: told by their bytes where the name does not say it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxseg.errors import DataError
from jaxseg.files import walk

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".npy",
)  # fmt: skip
# What these hold begins like an image, and is none of the data set's: GDAL's overviews and masks, cameras' thumbnails, backups, downloads.
OTHER_SUFFIXES = (".ovr", ".msk", ".thm", ".bak", ".orig", ".tmp", ".part", ".crdownload")
RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".pef", ".srw", ".raf")  # most begin like TIFF, and hold a preview
READABLE, PICTURE, DOCUMENT = "readable", "picture", "document"
# (name, what it is to us, how such a file begins); the first that fits counts.
KINDS = tuple((name, group, re.compile(start, re.DOTALL)) for name, group, start in (
    ("JPEG-LS", PICTURE, rb"\xff\xd8\xff\xf7"),
    ("JPEG", READABLE, rb"\xff\xd8\xff"),
    ("PNG", READABLE, rb"\x89PNG\r\n\x1a\n"),
    ("GIF", READABLE, rb"GIF8[79]a"),
    ("BMP", READABLE, rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("WebP", READABLE, rb"RIFF.{4}WEBP"),
    ("camera raw", PICTURE, rb"II\*\0.{4}CR|IIRO|IIU\0|MMOR|FUJIFILM"),
    ("TIFF", READABLE, rb"II[*+]\0|MM\0[*+]"),
    ("NPY", READABLE, rb"\x93NUMPY"),
    ("PNM", READABLE, rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s"),
    ("JPEG 2000", READABLE, rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("AVIF", PICTURE, rb".{4}ftypavi[fs]"),
    ("HEIC", PICTURE, rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)"),
    ("JPEG XL", PICTURE, rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG XR", PICTURE, rb"II\xbc\x01"),
    ("Photoshop", PICTURE, rb"8BPS"),
    ("GIMP", PICTURE, rb"gimp xcf"),
    ("OpenEXR", PICTURE, rb"\x76\x2f\x31\x01"),
    ("Radiance HDR", PICTURE, rb"#\?(?:RADIANCE|RGBE)"),
    ("PFM", PICTURE, rb"P[Ff]\s+\d+\s+\d+\s"),
    ("DICOM", PICTURE, rb".{128}DICM"),
    ("FITS", PICTURE, rb"SIMPLE  ="),
    ("PDF", DOCUMENT, rb"%PDF-"),
    ("PostScript", DOCUMENT, rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("SVG", DOCUMENT, rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?>\s*)?(?:<!--.*?-->\s*|<!DOCTYPE svg.*?>\s*)*<svg"),
))  # fmt: skip
SHOWN = 3  # names in a message


class Images(NamedTuple):
    """The images of a folder, what else lies there, (path, what it is known to be or ""), and what is wrong with it."""

    files: list[Path]
    left_out: list[tuple[Path, str]]
    errors: list[DataError]


def image_stem(name: str) -> str:
    """The name of an image without its suffix: photo, photo.jpg and photo.jfif are `photo`, a.b.c.png is `a.b.c`, frame.0001 stays."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and suffix and not suffix.isdecimal() else name


def file_kind(file: Path) -> tuple[str, str]:
    """(name of its kind, READABLE, PICTURE or DOCUMENT) of a file by its first bytes, ("", "") if it is no image of KINDS."""
    if file.suffix.lower() in RAW_SUFFIXES:
        return "camera raw", PICTURE
    if file.suffix.lower() in OTHER_SUFFIXES or not file.is_file():
        return "", ""
    try:
        with file.open("rb") as stream:
            start = stream.read(1024)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=file, hint="make it readable, or take it out") from None
    return next(((name, group) for name, group, pattern in KINDS if pattern.match(start)), ("", ""))


def list_images(folder: Path, *, nested: bool = True, without: str | Path = "") -> Images:
    """List the images of a folder in the order of their paths; `nested` and `without` as in `files.walk`.

    A file is an image by its suffix, one of IMAGE_SUFFIXES, or by its bytes. Documents and files of any other kind are left out.
    Errors, for the caller to raise, are links that lead nowhere and are named like an image, and pictures of a kind that is not
    read (HEIC for instance) without a readable one of the same name beside them: to leave them out would lose what was meant.
    """
    tree = walk(folder, nested=nested, without=without)
    files, left_out, pictures = [], [(path, "") for path in tree.left_out + tree.broken], []
    for file in tree.files:
        name, group = (file.suffix, READABLE) if file.suffix.lower() in IMAGE_SUFFIXES else file_kind(file)
        if group == READABLE:
            files.append(file)
        else:
            left_out.append((file, name))
            pictures += [(file, name)] * (group == PICTURE)
    stems = {_stem_path(file) for file in files} if pictures else set()
    errors, hint = broken_links(tree.broken, IMAGE_SUFFIXES), "save it as PNG, TIFF or JPEG, or take it out"
    for file, name in pictures:
        if _stem_path(file) not in stems:
            errors.append(DataError(f"is a picture of the kind {name}, which is not read", file=file, hint=hint))
    return Images(files, sorted(left_out), errors)


def broken_links(links: Iterable[Path], suffixes: tuple[str, ...]) -> list[DataError]:
    """An error for each of these links that lead nowhere whose name ends in one of `suffixes`."""
    found = (link for link in links if link.name.lower().endswith(suffixes))
    hint = "restore what it points to, or remove the link"
    return [DataError(f"is a broken link to {link.readlink()}", file=link, hint=hint) for link in found]


def _stem_path(file: Path) -> Path:
    return file.with_name(image_stem(file.name))


def describe_left_out(folder: Path, left_out: Sequence[tuple[Path, str]]) -> str:
    """One line about what was left out of a folder, "" for nothing."""
    if not left_out:
        return ""
    things = f"{len(left_out)} file or folder is" if len(left_out) == 1 else f"{len(left_out)} files and folders are"
    return f"{folder}: {things} left out as hidden, linked in a circle or no image: {first_names(folder, left_out)}"


def first_names(folder: Path, found: Iterable[tuple[Path, str]]) -> str:
    """'notes.txt, plan.pdf (PDF), ...': the first names of a list of files below a folder."""
    names = [f"{path.relative_to(folder)}{f' ({kind})' if kind else ''}" for path, kind in found]
    return ", ".join([*names[:SHOWN], *["..."][: len(names) > SHOWN]])
