"""The images of a folder, recognised by their suffix or else by their first bytes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxseg.data.decode.formats import HEAD, IMAGE_FORMATS, NO_PICTURES, detect_format
from jaxseg.errors import DataError
from jaxseg.files import walk

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".npy"),
)
# Files with these suffixes begin like an image but do not belong to the data set: overviews and
# masks of GDAL, thumbnails of cameras, backups, downloads.
OTHER_SUFFIXES = (".ovr", ".msk", ".thm", ".bak", ".orig", ".tmp", ".part", ".crdownload")
# Most camera raw files begin like a TIFF, which is a small preview.
RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".pef", ".srw", ".raf")
SHOWN = 3  # names in a message


class Images(NamedTuple):
    """The content of a folder.

    Attributes:
        files: The images.
        left_out: Other files, as (path, format or "").
        errors: What is wrong with the folder, for the caller to raise.
    """

    files: list[Path]
    left_out: list[tuple[Path, str]]
    errors: list[DataError]


def image_stem(name: str) -> str:
    """Return the name without its suffix: photo.jfif -> photo, a.b.png -> a.b; frame.0001 stays."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and suffix and not suffix.isdecimal() else name


def file_format(file: Path) -> str:
    """Return the format of a file by its first bytes.

    It is "" if it is not known, or if the suffix is one of OTHER_SUFFIXES.

    Raises:
        DataError: The file cannot be read.
    """
    if file.suffix.lower() in RAW_SUFFIXES:
        return "camera raw"
    if file.suffix.lower() in OTHER_SUFFIXES or not file.is_file():
        return ""
    try:
        with file.open("rb") as stream:
            return detect_format(stream.read(HEAD))
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", file=file, hint="make it readable, or take it out"
        ) from None


def list_images(folder: Path, *, nested: bool = True, without: str | Path = "") -> Images:
    """List the images of a folder, in the order of their paths.

    A file is an image by its suffix, one of IMAGE_SUFFIXES, or by its bytes. Documents and files of
    any other kind are left out.

    Args:
        folder: The folder.
        nested: Whether to list its subfolders; as in `files.walk`.
        without: A folder to skip; as in `files.walk`.

    Returns:
        The images. The errors are broken links that are named like an image, and pictures in a
        format that is not read (HEIC for instance) without a readable one of the same name beside
        them: leaving these out would lose data silently.
    """
    tree = walk(folder, nested=nested, without=without)
    files: list[Path] = []
    pictures: list[tuple[Path, str]] = []
    left_out = [(path, "") for path in tree.left_out]
    left_out += [(path, "") for path in tree.broken if path.suffix.lower() not in IMAGE_SUFFIXES]
    for file in tree.files:
        name = "" if file.suffix.lower() in IMAGE_SUFFIXES else file_format(file)
        if name in IMAGE_FORMATS or file.suffix.lower() in IMAGE_SUFFIXES:
            files.append(file)
            continue
        left_out.append((file, name))
        if name and name not in NO_PICTURES:
            pictures.append((file, name))
    stems = {_stem_path(file) for file in files} if pictures else set()
    errors = broken_links(tree.broken, IMAGE_SUFFIXES)
    hint = "save it as PNG, TIFF or JPEG, or take it out"
    for file, name in pictures:
        if _stem_path(file) not in stems:
            problem = f"is a picture in the format {name}, which is not supported"
            errors.append(DataError(problem, file=file, hint=hint))
    return Images(files, sorted(left_out), errors)


def broken_links(links: Iterable[Path], suffixes: tuple[str, ...]) -> list[DataError]:
    """Return an error for each of these broken links whose name ends in one of `suffixes`."""
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
    """Return one line about the files of a folder that were left out, "" for none.

    Args:
        folder: The folder.
        left_out: As (path, format or "").
        reason: Why most of them were.
    """
    if not left_out:
        return ""
    return (
        f"{folder}: left out {len(left_out)} (hidden, {reason}, or listed already): "
        f"{first_names(folder, left_out)}"
    )


def first_names(folder: Path, found: Iterable[tuple[Path, str]]) -> str:
    """Return the first of some files below a folder: 'notes.txt, plan.pdf (PDF), ...'."""
    names = [f"{path.relative_to(folder)}{f' ({kind})' if kind else ''}" for path, kind in found]
    shown = names[:SHOWN] + (["..."] if len(names) > SHOWN else [])
    return ", ".join(shown)
