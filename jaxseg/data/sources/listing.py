"""Which files of a folder are images: told by their bytes where the name does not say it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxseg.data.decode.formats import HEAD, IMAGE_FORMATS, NO_PICTURES, tell_format
from jaxseg.errors import DataError
from jaxseg.files import walk

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".npy",
)  # fmt: skip
# What these hold begins like an image, and is none of the data set's: GDAL's overviews and masks, cameras' thumbnails,
# backups, downloads.
OTHER_SUFFIXES = (".ovr", ".msk", ".thm", ".bak", ".orig", ".tmp", ".part", ".crdownload")
# Most of these begin like TIFF, and hold a small preview.
RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".pef", ".srw", ".raf")
SHOWN = 3  # names in a message


class Images(NamedTuple):
    """The images of a folder, what else lies there, (path, its format or ""), and what is wrong with it."""

    files: list[Path]
    left_out: list[tuple[Path, str]]
    errors: list[DataError]


def image_stem(name: str) -> str:
    """The name of an image without its suffix: of photo and photo.jfif `photo`, of a.b.c.png `a.b.c`; frame.0001 stays."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and suffix and not suffix.isdecimal() else name


def file_format(file: Path) -> str:
    """The format of a file by its first bytes, "" if it is none known, or one that no data set's image has."""
    if file.suffix.lower() in RAW_SUFFIXES:
        return "camera raw"
    if file.suffix.lower() in OTHER_SUFFIXES or not file.is_file():
        return ""
    try:
        with file.open("rb") as stream:
            return tell_format(stream.read(HEAD))
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", file=file, hint="make it readable, or take it out"
        ) from None


def list_images(folder: Path, *, nested: bool = True, without: str | Path = "") -> Images:
    """List the images of a folder in the order of their paths; `nested` and `without` as in `files.walk`.

    A file is an image by its suffix, one of IMAGE_SUFFIXES, or by its bytes. Documents and files of any other kind are
    left out. Errors, for the caller to raise, are links that lead nowhere and are named like an image, and pictures in
    a format that is not read (HEIC for instance) without a readable one of the same name beside them: to leave these
    out would lose what was meant.
    """
    tree = walk(folder, nested=nested, without=without)
    files, pictures = [], []
    left_out = [
        (path, "")
        for path in (
            *tree.left_out,
            *(path for path in tree.broken if path.suffix.lower() not in IMAGE_SUFFIXES),
        )
    ]
    for file in tree.files:
        name = "" if file.suffix.lower() in IMAGE_SUFFIXES else file_format(file)
        if name in IMAGE_FORMATS or file.suffix.lower() in IMAGE_SUFFIXES:
            files.append(file)
            continue
        left_out.append((file, name))
        if name and name not in NO_PICTURES:
            pictures.append((file, name))
    stems = {_stem_path(file) for file in files} if pictures else set()
    errors, hint = (
        broken_links(tree.broken, IMAGE_SUFFIXES),
        "save it as PNG, TIFF or JPEG, or take it out",
    )
    for file, name in pictures:
        if _stem_path(file) not in stems:
            errors.append(
                DataError(
                    f"is a picture in the format {name}, which is not read", file=file, hint=hint
                )
            )
    return Images(files, sorted(left_out), errors)


def broken_links(links: Iterable[Path], suffixes: tuple[str, ...]) -> list[DataError]:
    """An error for each of these links that lead nowhere whose name ends in one of `suffixes`."""
    found = (link for link in links if link.name.lower().endswith(suffixes))
    hint = "restore what it points to, or remove the link"
    return [
        DataError(f"is a broken link to {link.readlink()}", file=link, hint=hint) for link in found
    ]


def _stem_path(file: Path) -> Path:
    return file.with_name(image_stem(file.name))


def describe_left_out(
    folder: Path, left_out: Sequence[tuple[Path, str]], reason: str = "no image"
) -> str:
    """One line about what was left out of a folder, "" for nothing. reason: what most of it is."""
    return (
        f"{folder}: left out {len(left_out)} (hidden, {reason}, or listed already): {first_names(folder, left_out)}"
        if left_out
        else ""
    )


def first_names(folder: Path, found: Iterable[tuple[Path, str]]) -> str:
    """'notes.txt, plan.pdf (PDF), ...': the first names of a list of files below a folder."""
    names = [f"{path.relative_to(folder)}{f' ({kind})' if kind else ''}" for path, kind in found]
    return ", ".join([*names[:SHOWN], *["..."][: len(names) > SHOWN]])
