"""Photos on disk to label maps and overlays on disk."""

import collections
import logging
from pathlib import Path

from jaxseg import cache, visualize
from jaxseg.data.sources import IMAGE_SUFFIXES, decode_image, inspect_image
from jaxseg.inference import Predictor

log = logging.getLogger(__name__)


class InputError(ValueError):
    """Input or output paths that cannot be used; the message names the path and what to do."""


def find_images(source: str | Path) -> list[Path]:
    """The image files of a folder (not of folders in it), sorted, or the one file given; InputError if there is none."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"no such file or folder: {source}")
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"no images in {source}: it holds no file ending in {', '.join(IMAGE_SUFFIXES)}")
    return files


def predict_files(segment: Predictor, source: str | Path, output: str | Path) -> list[Path]:
    """Segment an image file or a folder of them; writes <stem>.png (class ids with a palette) and <stem>_overlay.png.

    Returns the label files. InputError: `output` would overwrite its input, two images of one stem. DataError: a file
    that is no image or has more than 8 bits a channel; by the headers, so before anything is written.
    """
    files, output = find_images(source), Path(output)
    if output.resolve() == files[0].parent.resolve():
        raise InputError(f"the output folder {output} is the input's own: predictions would overwrite images")
    written = collections.Counter(name for path in files for name in (path.stem, f"{path.stem}_overlay"))
    if doubled := [name for name, times in written.items() if times > 1]:
        raise InputError(f"two images in {source} would both be written as {doubled[0]}.png: rename one")
    for path in files:
        inspect_image(path, path)
    output.mkdir(parents=True, exist_ok=True)
    for path in files:
        image = decode_image(path.read_bytes(), path)
        mask = segment(image)
        visualize.save_label_png(output / f"{path.stem}.png", mask, segment.palette)
        picture = visualize.overlay(image[..., :3], mask, segment.palette, segment.classes)
        visualize.save_picture(output, f"{path.stem}_overlay", picture)
        log.info("%s: %s", path.name, " x ".join(map(str, mask.shape)))
    return [output / f"{path.stem}.png" for path in files]


def predict_checkpoint(checkpoint: str | Path, source: str | Path, output: str | Path, *, config=None) -> list[Path]:
    """`predict_files` with the model of a workdir or step; `config` overrides config.dataset and config.eval."""
    find_images(source)  # a wrong path is told before the model is loaded
    cache.enable_compilation_cache()
    return predict_files(Predictor.from_checkpoint(checkpoint, config), source, output)
