"""Photos on disk to label maps and overlays on disk."""

import collections
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg import cache, visualize
from jaxseg.data.decode import check_channels, decode_image, inspect_image
from jaxseg.data.listing import Images, describe_left_out, first_names, list_images
from jaxseg.data.pipeline import check_dtype
from jaxseg.errors import DataError
from jaxseg.files import expand
from jaxseg.inference import Predictor, read_dataset_facts

log = logging.getLogger(__name__)


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
        there = f"it holds {first_names(source, found.left_out)}" if found.left_out else "it is empty"
        raise InputError(f"no images there ({there})", file=source, field="--input")
    return found


def _log_left_out(source: Path, output: Path) -> None:
    if line := describe_left_out(source, _list(source, output).left_out):
        log.info("%s", line)


def predict_files(
    segment: Predictor, source: str | Path, output: str | Path, *, official_ids: Sequence[int] | None = None
) -> list[Path]:
    """Segment an image file or a folder of them; writes <stem>.png (class ids with a palette) and <stem>_overlay.png, in folders
    as the images lie in.

    official_ids: what stands for each class in the data set's own labels; <stem>.png then holds these, as benchmark servers want them, and no
    overlay is written. Returns the label files. InputError: `output` would overwrite its input, two images of one stem. DataError:
    a file that is no image or not of the kind the model was trained on; by the headers, so before anything is written.
    """
    source, output = expand(source), expand(output)
    base = source.parent if source.is_file() else source
    if output.resolve() == base.resolve():
        raise InputError(f"the output folder {output} is the input's own: predictions would overwrite images")
    files, endings = find_images(source, output), ("",) if official_ids else ("", "_overlay")
    targets = [output / path.relative_to(base).with_suffix("") for path in files]
    written = collections.Counter(f"{target}{ending}" for target in targets for ending in endings)
    if doubled := [name for name, times in written.items() if times > 1]:
        raise InputError(f"two images in {source} would both be written as {Path(doubled[0]).name}.png: rename one")
    _log_left_out(source, output)
    data = segment.config.dataset
    for path in files:
        header = inspect_image(path, path, data.channels)
        check_channels(header.channels, data.channels, path, header.alpha)
        check_dtype(header.dtype, data.dtype, str(path))
    for path, target in zip(files, targets):
        target.parent.mkdir(parents=True, exist_ok=True)
        image = decode_image(path.read_bytes(), path, data.channels)
        mask = segment(image)
        if official_ids:
            save_official(target.with_name(f"{target.name}.png"), mask, official_ids)
        else:
            visualize.save_label_png(target.with_name(f"{target.name}.png"), mask, segment.palette)
            picture = visualize.overlay(visualize.to_rgb(image), mask, segment.palette, segment.classes)
            visualize.save_picture(target.parent, f"{target.name}_overlay", picture)
        log.info("%s: %s", path.relative_to(base), " x ".join(map(str, mask.shape)))
    return [target.with_name(f"{target.name}.png") for target in targets]


def save_official(path: Path, mask: np.ndarray, ids: Sequence[int] | Sequence[Sequence[int]]) -> None:
    """Write class ids [H, W] as a PNG of the values or RGB colours that stand for them, 8 bits, or 16 where these are needed."""
    table = np.array(ids)
    table = table.astype(np.uint8 if table.max() < 256 else np.uint16)
    Image.fromarray(table[mask]).save(path, optimize=True)


def predict_checkpoint(
    checkpoint: str | Path, source: str | Path, output: str | Path, *, config=None, submission: bool = False
) -> list[Path]:
    """`predict_files` with the model of a workdir or step; `config` overrides config.dataset and config.eval.

    submission: write the data set's own label values instead of class ids.
    """
    find_images(source)  # a wrong path is told before the model is loaded
    cache.enable_compilation_cache()
    ids = None
    if submission:
        ids = _official_ids(checkpoint)
    return predict_files(Predictor.from_checkpoint(checkpoint, config), source, output, official_ids=ids)


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
