"""Photos on disk to label maps and overlays on disk."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import visualize
from jaxseg.constants import IGNORE
from jaxseg.data import class_order
from jaxseg.data.decode import Header, ImageOptions, check_channels, decode, inspect_image
from jaxseg.data.decode.images import MEND_IMAGE
from jaxseg.data.pipeline import image_options
from jaxseg.data.sources.listing import (
    Images,
    describe_left_out,
    first_names,
    image_stem,
    list_images,
)
from jaxseg.data.values import check_range
from jaxseg.errors import DataError, about
from jaxseg.files import atomic_path, expand
from jaxseg.inference.predictor import Predictor, read_dataset_facts

log = logging.getLogger(__name__)

# Of an --output that is no folder.
FILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".npy")
MEND_PHOTO = "replace it, or take it out of the images to segment"

InputError = DataError  # its earlier name


def find_images(source: str | Path, output: str | Path = "") -> list[Path]:
    """The image files of a folder and of the folders in it, in the order of their paths, or the one file given.

    Images are told as in training, see `listing.list_images`; what lies in `output` is left out.

    Raises:
        DataError: there is none, or a picture in a format that is not read.
    """
    return _list(source, output).files


def _list(source: str | Path, output: str | Path) -> Images:
    source = expand(source)
    if source.is_file():
        return Images([source], [], [])
    if not source.is_dir():
        raise InputError("no such file or folder", file=source, field="--input")
    found = list_images(source, without=expand(output) if output else "")
    if found.errors:
        raise found.errors[0]
    if not found.files:
        there = (
            f"it holds {first_names(source, found.left_out)}" if found.left_out else "it is empty"
        )
        raise InputError(f"no images there ({there})", file=source, field="--input")
    return found


def _log_left_out(source: Path, output: Path) -> None:
    if line := describe_left_out(source, _list(source, output).left_out):
        log.info("%s", line)


def predict_files(
    segment: Predictor, source: str | Path, output: str | Path, *,
    official_ids: Sequence[int] | None = None, classes: Sequence[str] = (),
) -> list[Path]:  # fmt: skip
    """Segment an image file or a folder of them, and write class ids with a palette, 255 where an image holds no data.

    Args:
        segment: the model.
        source: an image file, or a folder whose images are segmented.
        output: a folder, which gets <stem>.png and <stem>_overlay.png of each image, in folders as the images lie in.
            Of one image it may be a file ending in .png.
        official_ids: what stands for each class in the data set's own labels; these are written, as benchmark servers
            want them, and no overlays.
        classes: the order in which ids are written where it is not the model's.

    Returns:
        The label files.

    Raises:
        DataError: `output` cannot be written as meant or would overwrite an image; an image is damaged or not of the
            kind the model was trained on, which the headers tell before anything is written.
        NonFiniteError: the model's scores are no numbers.
    """
    source, output = expand(source), expand(output)
    targets = _targets(source, output, () if official_ids else ("_overlay",))
    _log_left_out(source, output)
    data = segment.config.dataset
    options = ImageOptions(**image_options(data))
    order = [segment.classes.index(name) for name in classes or segment.classes]
    ids = np.full(256, IGNORE, np.int32)
    ids[: len(order)] = np.argsort(order)
    names, palette = ([values[i] for i in order] for values in (segment.classes, segment.palette))
    for path in targets:
        with _of_one_image(path):
            _check_header(
                inspect_image(path, path, data.channels, max_pixels=options.max_pixels), data
            )
    for path, target in targets.items():
        with _of_one_image(path):
            image = decode(path.read_bytes(), path, options)
            check_range(image.filled(options.fill), path, options.nodata)
            pixels = (
                image.pixels
                if image.missing is None
                else np.ma.masked_array(image.pixels, image.missing)
            )
            mask = segment(pixels)
        if official_ids:
            save_official(target, mask, official_ids)
        else:
            mask = ids[mask]
            visualize.save_label_png(target, mask, palette)
            picture = visualize.overlay(
                visualize.to_rgb(image.filled(options.fill)), mask, palette, names
            )
            visualize.save_picture(target.parent, f"{target.stem}_overlay", picture)
        name = path.name if source.is_file() else path.relative_to(source)
        log.info("%s: %s", name, " x ".join(map(str, mask.shape)))
    return list(targets.values())


def _targets(source: Path, output: Path, endings: Sequence[str]) -> dict[Path, Path]:
    """{image: its label file}, where more is written beside a label file under its stem and each of `endings`."""
    if output.suffix.lower() in FILE_SUFFIXES and not output.is_dir():
        _check_output_file(source, output)
        targets = {path: output for path in find_images(source)}
    else:
        if output.exists() and not output.is_dir():
            raise DataError(
                "is a file, no folder to write into",
                file=output,
                field="--output",
                hint="give a folder",
            )
        base = source.parent if source.is_file() else source
        if output.resolve() == base.resolve():
            raise DataError(
                "the output folder is the input's own: predictions would overwrite images", file=output, field="--output",
                hint="give another folder",
            )  # fmt: skip
        paths = {path: output / path.relative_to(base) for path in find_images(source, output)}
        targets = {
            path: target.with_name(f"{image_stem(target.name)}.png")
            for path, target in paths.items()
        }
    _check_written(targets, endings)
    return targets


def _check_output_file(source: Path, output: Path) -> None:
    if source.is_dir():
        raise DataError(f"--output names one file, but --input={source} is a folder", file=output, field="--output",
                        hint="give a folder to write into")  # fmt: skip
    if output.suffix.lower() != ".png":
        raise DataError("class numbers are written as PNG", file=output, field="--output",
                        hint=f"say --output={output.with_suffix('.png')}, or give a folder")  # fmt: skip


def _check_written(targets: Mapping[Path, Path], endings: Sequence[str]) -> None:
    """DataError if two images would be written as one file, or one over an image."""
    owners: dict[Path, Path] = {}
    images = {path.resolve() for path in targets}
    for path, target in targets.items():
        for file in (
            target,
            *(target.with_name(f"{target.stem}{ending}.png") for ending in endings),
        ):
            if file.resolve() in images:
                raise DataError("is an image to be segmented, and would be overwritten", file=file, field="--output",
                                hint="write elsewhere")  # fmt: skip
            if file in owners:
                raise DataError(f"{owners[file]} and {path} would both be written as {file.name}", file=path, field="--input",
                                hint="rename one")  # fmt: skip
            owners[file] = path


def _check_header(header: Header, data: ConfigDict) -> None:
    """DataError, in the words of one photo, unless the model can read an image."""
    try:
        check_channels(header.channels, data.channels, "", header.alpha)
    except DataError:
        raise DataError(
            f"the image has {header.channels} channels, but the model was trained on {data.channels}", field="--input",
            hint=f"convert it to {data.channels} channels",
        ) from None  # fmt: skip
    if header.dtype != data.dtype:
        raise DataError(
            f"the image is {header.dtype}, but the model was trained on {data.dtype}", field="--input",
            hint=f"convert it to {data.dtype}, to values like those it was trained on",
        )  # fmt: skip


@contextlib.contextmanager
def _of_one_image(path: Path) -> Iterator[None]:
    """Name the image in errors, and replace the advice of the reader that is about data sets with labels."""
    with about(file=path):
        try:
            yield
        except DataError as error:
            error.hint = MEND_PHOTO if error.hint == MEND_IMAGE else error.hint
            raise
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", hint=MEND_PHOTO) from None


def save_official(
    path: Path, mask: np.ndarray, ids: Sequence[int] | Sequence[Sequence[int]]
) -> None:
    """Write class ids [H, W] as a PNG of the values or RGB colours that stand for them.

    It has 8 bits, or 16 where the values need them. Pixels without data are 255, or black.
    """
    values, missing = np.array(ids), IGNORE if np.ndim(ids) == 1 else 0
    table = np.full(
        (IGNORE + 1, *values.shape[1:]), missing, np.uint8 if values.max() < 256 else np.uint16
    )
    table[: len(values)] = values
    with atomic_path(path) as part:
        Image.fromarray(table[mask]).save(part, optimize=True)


def predict_checkpoint(
    checkpoint: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    config=None,
    submission: bool = False,
) -> list[Path]:
    """`predict_files` with the model of a workdir or step; `config` overrides config.dataset and config.eval.

    submission: write the data set's own label values instead of class ids.
    """
    _targets(expand(source), expand(output), ())  # a wrong path is told before the model is loaded
    ids = None
    if submission:
        ids = _official_ids(checkpoint)
    segment = Predictor.from_checkpoint(checkpoint, config)
    how, classes = segment.config.dataset.match_classes, segment.classes
    for root in (_given_root(config), class_order.root_of(source)):
        classes = class_order.prediction_classes(root, segment.classes, how) if root else classes
    return predict_files(segment, source, output, official_ids=ids, classes=classes)


def _given_root(config) -> str:
    """The `folder` data set that a config names to predict on, '' if none."""
    if (
        config is None
        or config.dataset.name != "folder"
        or config.eval.dataset not in ("", "folder")
    ):
        return ""
    return config.eval.root or (config.dataset.root if config.dataset.source == "files" else "")


def _official_ids(checkpoint: str | Path) -> Sequence[int] | Sequence[Sequence[int]]:
    """What stands for each class in the data set's own labels, colours or numbers. DataError if PNG cannot hold it."""
    facts = read_dataset_facts(checkpoint)
    if colors := facts.get("colors"):
        return colors
    ids = facts.get("official_ids") or range(len(facts["classes"]))
    for name, value in zip(facts["classes"], ids):
        if not 0 <= value <= 65535:
            raise DataError(
                f"label value {value} stands for class '{name}', and a PNG holds 0 to 65535", file=checkpoint, field="--submission",
                hint="a value that it holds must be the first of the class in label_map.txt when the model is trained",
            )  # fmt: skip
    return ids
