"""Segment image files, and write label maps and overlays."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg import visualize
from jaxseg.config.resolve import Config
from jaxseg.config.schema import DatasetConfig
from jaxseg.constants import IGNORE
from jaxseg.data import class_order
from jaxseg.data.decode import Header, ImageOptions, check_channels, decode, inspect_image
from jaxseg.data.decode.images import MEND_IMAGE
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
from jaxseg.inference.predictor import Predictor
from jaxseg.workdir import load_dataset_metadata

log = logging.getLogger(__name__)

# Suffixes that make `output` a file name rather than a folder.
FILE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".npy")
REPLACE_HINT = "replace it, or take it out of the images to segment"
LARGEST_LABEL = 2**16 - 1  # of a PNG


def find_images(source: str | Path, output: str | Path = "") -> list[Path]:
    """Find the images to segment.

    Args:
        source: An image file, or a folder whose images, including those in subfolders, are listed
            as for training.
        output: A folder to leave out, "" for none.

    Returns:
        The files, in the order of their paths.

    Raises:
        DataError: There is no image, or an image has an unsupported format.
    """
    return _list(source, output).files


def _list(source: str | Path, output: str | Path) -> Images:
    source = expand(source)
    if source.is_file():
        return Images([source], [], [])
    if not source.is_dir():
        raise DataError("no such file or folder", file=source, field="source")
    found = list_images(source, without=expand(output) if output else "")
    if found.errors:
        raise found.errors[0]
    if not found.files:
        content = "it is empty"
        if found.left_out:
            content = f"it holds {first_names(source, found.left_out)}"
        raise DataError(f"no images there ({content})", file=source, field="source")
    return found


def _log_left_out(source: Path, output: Path) -> None:
    if line := describe_left_out(source, _list(source, output).left_out):
        log.info("%s", line)


def predict_files(
    segment: Predictor,
    source: str | Path,
    output: str | Path,
    *,
    submission_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    classes: Sequence[str] = (),
) -> list[Path]:
    """Segment image files, and write class ids as palette PNGs, with 255 for pixels without data.

    Args:
        segment: The model.
        source: An image file, or a folder of images.
        output: A folder for <stem>.png and <stem>_overlay.png of each image, in the same
            subfolders. For a single image it may also be a file name that ends in .png.
        submission_ids: Number or RGB colour of each class in the data set's own labels. They are
            written instead of class ids, as benchmark servers expect them, without overlays.
        classes: Order of the class ids to write; () for the model's order.

    Returns:
        The label files.

    Raises:
        DataError: `output` cannot be written or would overwrite an image; an image is damaged, or
            its channels or dtype differ from the training images. Headers are checked before
            anything is written.
        NonFiniteError: Class scores are not finite.
    """
    source, output = expand(source), expand(output)
    targets = _targets(source, output, () if submission_ids else ("_overlay",))
    _log_left_out(source, output)
    dataset = segment.experiment.dataset
    options = ImageOptions(
        channels=dataset.channels,
        nodata=dataset.nodata,
        max_pixels=dataset.max_pixels,
        fill=dataset.image_mean,
    )
    order = [segment.classes.index(name) for name in classes or segment.classes]
    ids = np.full(256, IGNORE, np.int32)
    ids[: len(order)] = np.argsort(order)
    names = [segment.classes[k] for k in order]
    palette = [segment.palette[k] for k in order]
    for path in targets:
        with _naming_image(path):
            header = inspect_image(path, path, options.channels, max_pixels=options.max_pixels)
            _check_header(header, dataset)
    for path, target in targets.items():
        with _naming_image(path):
            image = decode(path.read_bytes(), path, options)
            check_range(image.filled(options.fill), path, options.nodata)
            pixels = image.pixels
            if image.missing is not None:
                pixels = np.ma.masked_array(image.pixels, image.missing)
            mask = segment(pixels)
        if submission_ids:
            save_submission(target, mask, submission_ids)
        else:
            mask = ids[mask]
            visualize.save_label_png(target, mask, palette)
            photo = visualize.to_rgb(image.filled(options.fill))
            picture = visualize.overlay(photo, mask, palette, names)
            visualize.save_picture(target.parent, f"{target.stem}_overlay", picture)
        name = path.name if source.is_file() else path.relative_to(source)
        log.info("%s: %s", name, " x ".join(map(str, mask.shape)))
    return list(targets.values())


def _targets(source: Path, output: Path, endings: Sequence[str]) -> dict[Path, Path]:
    """Return {image: its label file}.

    `endings` are those of further files with the stem of the label file, in the same folder.
    """
    if output.suffix.lower() in FILE_SUFFIXES and not output.is_dir():
        _check_output_file(source, output)
        targets = {path: output for path in find_images(source)}
    else:
        base = source.parent if source.is_file() else source
        _check_output_folder(base, output)
        targets = {}
        for path in find_images(source, output):
            target = output / path.relative_to(base)
            targets[path] = target.with_name(f"{image_stem(target.name)}.png")
    _check_written(targets, endings)
    return targets


def _check_output_folder(base: Path, output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise DataError(
            "is a file, not a folder", file=output, field="output", hint="give a folder"
        )
    if output.resolve() == base.resolve():
        raise DataError(
            "the output folder is the input folder: predictions would overwrite images",
            file=output,
            field="output",
            hint="give another folder",
        )


def _check_output_file(source: Path, output: Path) -> None:
    if source.is_dir():
        raise DataError(
            f"the output is one file, but the input {source} is a folder",
            file=output,
            field="output",
            hint="give a folder to write into",
        )
    if output.suffix.lower() != ".png":
        raise DataError(
            "class ids are written as PNG",
            file=output,
            field="output",
            hint=f"write {output.with_suffix('.png')}, or give a folder",
        )


def _check_written(targets: Mapping[Path, Path], endings: Sequence[str]) -> None:
    """Raise DataError if two images have the same output file, or an output file is an image."""
    owners: dict[Path, Path] = {}
    images = {path.resolve() for path in targets}
    for path, target in targets.items():
        beside = [target.with_name(f"{target.stem}{ending}.png") for ending in endings]
        for file in (target, *beside):
            if file.resolve() in images:
                raise DataError(
                    "is an image to be segmented, and would be overwritten",
                    file=file,
                    field="output",
                    hint="choose another output",
                )
            if file in owners:
                raise DataError(
                    f"{owners[file]} and {path} would both be written as {file.name}",
                    file=path,
                    field="source",
                    hint="rename one",
                )
            owners[file] = path


def _check_header(header: Header, dataset: DatasetConfig) -> None:
    """Raise DataError, worded for a single image, unless the model can read it."""
    try:
        check_channels(header.channels, dataset.channels, "", header.alpha)
    except DataError:
        raise DataError(
            f"the image has {header.channels} channels, but the model was trained on "
            f"{dataset.channels}",
            field="source",
            hint=f"convert it to {dataset.channels} channels",
        ) from None
    if header.dtype != dataset.dtype:
        raise DataError(
            f"the image is {header.dtype}, but the model was trained on {dataset.dtype}",
            field="source",
            hint=f"convert it to {dataset.dtype}, with the range of values of the training images",
        )


@contextlib.contextmanager
def _naming_image(path: Path) -> Iterator[None]:
    """Name the image in errors, and replace hints that concern labelled data sets."""
    with about(file=path):
        try:
            yield
        except DataError as error:
            error.hint = REPLACE_HINT if error.hint == MEND_IMAGE else error.hint
            raise
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", hint=REPLACE_HINT) from None


def save_submission(
    path: Path, mask: np.ndarray, ids: Sequence[int] | Sequence[Sequence[int]]
) -> None:
    """Write a label map with the data set's own values as PNG, with 16 bits if necessary.

    Args:
        path: The file.
        mask: Class ids, int [H, W], 255 for pixels without data.
        ids: Number or RGB colour of each class; pixels without data become 255, or black.

    Raises:
        JaxsegError: The file cannot be written.
    """
    values = np.array(ids)
    missing = IGNORE if values.ndim == 1 else 0
    dtype = np.uint8 if values.max() < 256 else np.uint16
    table = np.full((IGNORE + 1, *values.shape[1:]), missing, dtype)
    table[: len(values)] = values
    with atomic_path(path) as part:
        Image.fromarray(table[mask]).save(part, optimize=True)


def predict_checkpoint(
    checkpoint: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    config: Config | None = None,
    submission: bool = False,
) -> list[Path]:
    """Segment image files with a trained or converted model; see `predict_files`.

    Args:
        checkpoint: A workdir (its best step) or one step, WORKDIR/checkpoints/STEP.
        source: An image file, or a folder of images.
        output: The output folder; for a single image it may also be a file name ending in .png.
        config: An Experiment or a config whose `dataset`, `eval` and `precision` override the
            run's.
        submission: Whether to write the data set's own label values instead of class ids.

    Returns:
        The label files.

    Raises:
        JaxsegError: See `predict_files` and `Predictor.from_checkpoint`.
    """
    _targets(expand(source), expand(output), ())  # report a wrong path before the model is loaded
    ids = load_submission_ids(checkpoint) if submission else None
    segment = Predictor.from_checkpoint(checkpoint, config)
    match = segment.experiment.dataset.match_classes
    classes = segment.classes
    for root in (_given_root(config), class_order.root_of(source)):
        if root:
            classes = class_order.prediction_classes(root, segment.classes, match)
    return predict_files(segment, source, output, submission_ids=ids, classes=classes)


def _given_root(config: Config | None) -> str:
    """Return the root of the `folder` data set that a config names, "" if none."""
    if (
        config is None
        or config.dataset.name != "folder"
        or config.eval.dataset not in ("", "folder")
    ):
        return ""
    return config.eval.root or (config.dataset.root if config.dataset.source == "files" else "")


def load_submission_ids(checkpoint: str | Path) -> Sequence[int] | Sequence[Sequence[int]]:
    """Return the number or RGB colour of each class in the data set's own labels.

    Raises:
        DataError: A number is too large for a PNG.
    """
    metadata = load_dataset_metadata(checkpoint)
    if colors := metadata.get("colors"):
        return colors
    ids = metadata.get("submission_ids") or metadata.get("official_ids")  # of the first edition
    ids = ids or range(len(metadata["classes"]))
    for name, value in zip(metadata["classes"], ids):
        if not 0 <= value <= LARGEST_LABEL:
            raise DataError(
                f"class '{name}' has the label value {value}, but a PNG holds 0 to {LARGEST_LABEL}",
                file=checkpoint,
                field="submission",
                hint="train with a label_map.txt in which the first value of the class is in this "
                "range",
            )
    return ids
