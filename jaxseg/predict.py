"""Photos on disk to label maps and overlays on disk."""

import collections
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg import cache, visualize
from jaxseg.data import class_order
from jaxseg.data.decode import check_channels, decode_image, inspect_image
from jaxseg.data.pipeline import check_dtype
from jaxseg.data.sources import IMAGE_SUFFIXES
from jaxseg.errors import DataError
from jaxseg.inference import Predictor, read_dataset_facts

log = logging.getLogger(__name__)


InputError = DataError  # its earlier name


def find_images(source: str | Path, output: str | Path = "") -> list[Path]:
    """The image files of a folder and of the folders in it, sorted, or the one file given; InputError if there is none.

    Hidden files and what lies in `output` are left out.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"no such file or folder: {source}")
    files = (Path(path) / name for path, _, names in os.walk(source, followlinks=True) for name in names)
    images = (file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."))
    found = sorted(file for file in images if not output or Path(output).resolve() not in file.resolve().parents or Path(output).resolve() == source.resolve())
    if not found:
        raise InputError(f"no images in {source}: it holds no file ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def predict_files(
    segment: Predictor, source: str | Path, output: str | Path, *,
    official_ids: Sequence[int] | None = None, classes: Sequence[str] = (),
) -> list[Path]:  # fmt: skip
    """Segment an image file or a folder of them; writes <stem>.png (class ids with a palette) and <stem>_overlay.png, in folders
    as the images lie in.

    official_ids: what stands for each class in the data set's own labels; <stem>.png then holds these, as benchmark servers want them, and no
    overlay is written.
    classes: the order in which ids are written where it is not the model's. Returns the label files. InputError: `output` would overwrite its input, two images of one stem. DataError:
    a file that is no image or not of the kind the model was trained on; by the headers, so before anything is written.
    """
    source, output = Path(source), Path(output)
    base = source.parent if source.is_file() else source
    if output.resolve() == base.resolve():
        raise InputError(f"the output folder {output} is the input's own: predictions would overwrite images")
    files, endings = find_images(source, output), ("",) if official_ids else ("", "_overlay")
    targets = [output / path.relative_to(base).with_suffix("") for path in files]
    written = collections.Counter(f"{target}{ending}" for target in targets for ending in endings)
    if doubled := [name for name, times in written.items() if times > 1]:
        raise InputError(f"two images in {source} would both be written as {Path(doubled[0]).name}.png: rename one")
    data = segment.config.dataset
    for path in files:
        header = inspect_image(path, path, data.channels)
        check_channels(header.channels, data.channels, path, header.alpha)
        check_dtype(header.dtype, data.dtype, str(path))
    order = [segment.classes.index(name) for name in classes or segment.classes]
    ids = np.argsort(order).astype(np.int32)
    names, palette = ([values[i] for i in order] for values in (segment.classes, segment.palette))
    for path, target in zip(files, targets):
        target.parent.mkdir(parents=True, exist_ok=True)
        image = decode_image(path.read_bytes(), path, data.channels)
        mask = segment(image)
        if official_ids:
            save_official(target.with_name(f"{target.name}.png"), mask, official_ids)
        else:
            mask = ids[mask]
            visualize.save_label_png(target.with_name(f"{target.name}.png"), mask, palette)
            picture = visualize.overlay(visualize.to_rgb(image), mask, palette, names)
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
        facts = read_dataset_facts(checkpoint)
        ids = facts.get("colors") or facts.get("official_ids") or range(len(facts["classes"]))
    segment = Predictor.from_checkpoint(checkpoint, config)
    how, classes = segment.config.dataset.match_classes, segment.classes
    for root in (_given_root(config), class_order.root_of(source)):
        classes = class_order.prediction_classes(root, segment.classes, how) if root else classes
    return predict_files(segment, source, output, official_ids=ids, classes=classes)


def _given_root(config) -> str:
    """The `folder` data set that a config names to predict on, '' if none."""
    if config is None or config.dataset.name != "folder" or config.eval.dataset not in ("", "folder"):
        return ""
    return config.eval.root or (config.dataset.root if config.dataset.source == "files" else "")
