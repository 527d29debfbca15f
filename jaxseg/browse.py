"""Pictures of training samples after augmentation: image and label side by side."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg import visualize
from jaxseg.config.schema import Experiment
from jaxseg.data import pipeline
from jaxseg.data.spec import DatasetSpec
from jaxseg.files import expand
from jaxseg.fonts import choose_font

COLUMN_SIDE = 512  # pixels, the longer side of a picture
CELL_SIDE = 240  # pixels, the longer side of a picture in the sheet
SHEET_COLUMNS = 4
GAP = 8  # pixels
TITLE_HEIGHT, TITLE_SIZE = 26, 14  # pixels
OPACITY = 0.6  # of the label over the image


class Sample(NamedTuple):
    """A training sample.

    Attributes:
        name: Its name in the data set.
        image: [h, w, C] of the data set's dtype.
        label: Class indices and 255, uint8 [h, w].
    """

    name: str
    image: np.ndarray
    label: np.ndarray


def browse(
    experiment: Experiment,
    spec: DatasetSpec,
    output: str | Path,
    count: int = 16,
    *,
    raw: bool = False,
) -> list[Path]:
    """Write a picture of each of the first training samples, and sheet.png with all of them.

    Args:
        experiment: A measured experiment, whose training batches are drawn without padding.
        spec: The spec of `experiment.dataset` (`catalog.load_spec`).
        output: Folder to write into; created if it does not exist.
        count: Number of samples.
        raw: Show the same images without augmentation.

    Returns:
        The files written, the sheet last.

    Raises:
        DataError: The data cannot be read.
    """
    output = expand(output)
    crop = tuple(experiment.dataset.crop_size)
    files, cells, labels = [], [], []
    samples = itertools.islice(_samples(experiment, spec, raw), count)
    for number, (name, image, label) in enumerate(samples):
        photo = visualize.to_rgb(image)
        title = f"{name}  {label.shape[1]}x{label.shape[0]}"
        if not raw and label.shape != crop:
            title += f", padded to {crop[1]}x{crop[0]}"
        picture = panel(photo, label, spec, title)
        files.append(visualize.save_picture(output, f"{number:03d}_{name}", picture))
        cells.append(_side_by_side(photo, label, spec, CELL_SIDE))
        labels.append(label)
    files.append(visualize.save_picture(output, "sheet", sheet(cells, labels, spec)))
    return files


def _samples(experiment: Experiment, spec: DatasetSpec, raw: bool) -> Iterator[Sample]:
    """Yield the training samples in the order of training."""
    source = pipeline.train_source(experiment.dataset, spec)
    batches = pipeline.train_batches(
        experiment.dataset,
        spec,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        devices=1,
    )
    try:
        for k in itertools.count():
            if raw:
                for index in batches.indices(k):
                    yield Sample(source.names[index], *source.read(index))
                continue
            batch = next(batches)
            for row, index in enumerate(batches.indices(k)):
                height, width = batch["size"][0, row]
                image = batch["image"][0, row, :height, :width]
                label = batch["label"][0, row, :height, :width]
                yield Sample(source.names[index], image, label)
    finally:
        batches.close()


# --- Pictures -------------------------------------------------------------------------------------


def panel(photo: np.ndarray, label: np.ndarray, spec: DatasetSpec, title: str) -> np.ndarray:
    """Draw [image | label over image] with a title and a legend.

    Args:
        photo: RGB uint8 [h, w, 3].
        label: Class indices and 255, integer [h, w].
        spec: Provides names and colours of the classes.
        title: Text above the pictures.

    Returns:
        RGB uint8 [H, W, 3].
    """
    row = _side_by_side(photo, label, spec, COLUMN_SIDE)
    legend = visualize.legend([label], spec.palette, spec.classes, row.shape[1], shares=True)
    return np.concatenate([_title(title, row.shape[1]), row, legend])


def _side_by_side(photo: np.ndarray, label: np.ndarray, spec: DatasetSpec, side: int) -> np.ndarray:
    """Draw [image | label over image], the longer side of each at most `side` pixels.

    Small images are enlarged by a whole factor, so that pixels stay visible as squares.
    """
    longest = max(label.shape)
    scale = side // longest if longest <= side else side / longest
    height, width = (max(round(n * scale), 1) for n in label.shape)
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    photo = np.asarray(Image.fromarray(photo).resize((width, height), method))
    small_label = Image.fromarray(label.astype(np.uint8))
    ids = np.asarray(small_label.resize((width, height), Image.Resampling.NEAREST))
    over = visualize.blend(photo, ids, spec.palette, OPACITY)
    gap = np.full((height, GAP, 3), 255, np.uint8)
    return np.concatenate([photo, gap, over], axis=1)


def _title(text: str, width: int) -> np.ndarray:
    """Draw a bar with a text: RGB uint8 [TITLE_HEIGHT, width, 3]."""
    bar = Image.new("RGB", (width, TITLE_HEIGHT), visualize.BACKGROUND)
    font = choose_font(text, TITLE_SIZE)
    if font is None:
        text = text.encode("ascii", "replace").decode()
        font = ImageFont.load_default(TITLE_SIZE)
    place = (4, TITLE_HEIGHT // 2)
    ImageDraw.Draw(bar).text(place, text, visualize.INK, font, anchor="lm")
    return np.asarray(bar)


def sheet(
    cells: Sequence[np.ndarray], labels: Sequence[np.ndarray], spec: DatasetSpec
) -> np.ndarray:
    """Draw pictures in a grid above one legend.

    Args:
        cells: RGB uint8 [h, w, 3] each.
        labels: Their labels, whose classes the legend lists.
        spec: Provides names and colours of the classes.

    Returns:
        RGB uint8 [H, W, 3].
    """
    columns = min(SHEET_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    height = max(cell.shape[0] for cell in cells) + 2 * GAP
    width = max(cell.shape[1] for cell in cells) + 2 * GAP
    grid = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        top, left = row * height + GAP, column * width + GAP
        grid[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    legend = visualize.legend(labels, spec.palette, spec.classes, grid.shape[1], shares=True)
    return np.concatenate([grid, legend])
