"""Pictures of training samples as the network sees them: image and label side by side, a legend, one sheet of them all."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from jaxseg import visualize
from jaxseg.data import pipeline
from jaxseg.data.class_order import config_spec
from jaxseg.data.spec import DatasetSpec
from jaxseg.files import expand
from jaxseg.fonts import choose_font

COLUMN = 512  # pixels: the longer side of a picture, at most
CELL = 240  # pixels: the same in the sheet
SHEET_COLUMNS = 4
GAP = 8


def browse(
    config: ConfigDict, output: str | Path, count: int = 16, *, raw: bool = False
) -> list[Path]:
    """Write the first `count` samples that training on `config` sees into `output`, and sheet.png of them all.

    They come from pipeline.train_batches, without their padding; with `raw` the same images as their files hold them.
    Returns the files written, the sheet last. Raises DataError.
    """
    data, output = config.dataset, expand(output)
    spec = config_spec(data)
    files, cells, labels = [], [], []
    for number, (name, image, label) in enumerate(itertools.islice(_samples(config, raw), count)):
        photo = visualize.to_rgb(image)
        padded = (
            ""
            if raw or label.shape == tuple(data.crop_size)
            else f", padded to {data.crop_size[1]}x{data.crop_size[0]}"
        )
        title = f"{name}  {label.shape[1]}x{label.shape[0]}{padded}"
        files.append(
            visualize.save_picture(output, f"{number:03d}_{name}", panel(photo, label, spec, title))
        )
        cells.append(_pair(photo, label, spec, CELL))
        labels.append(label)
    files.append(visualize.save_picture(output, "sheet", sheet(cells, labels, spec)))
    return files


def _samples(config: ConfigDict, raw: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, image [h, w, C], label [h, w]) in the order of training."""
    source = pipeline.train_source(config.dataset)
    batches = pipeline.train_batches(config, devices=1)
    try:
        for k in itertools.count():
            batch = None if raw else next(batches)
            for row, index in enumerate(batches.indices(k)):
                if raw:
                    image, label = source.read(index)
                else:
                    height, width = batch["size"][0, row]
                    image, label = (
                        batch[key][0, row, :height, :width] for key in ("image", "label")
                    )
                yield source.names[index], image, label
    finally:
        batches.close()


# --- Pictures ---------------------------------------------------------------------------------------------------------


def panel(photo: np.ndarray, label: np.ndarray, spec: DatasetSpec, title: str) -> np.ndarray:
    """[image | label over image] with a title and a legend: RGB uint8 of a photo uint8 [h, w, 3] and its label [h, w]."""
    row = _pair(photo, label, spec, COLUMN)
    legend = visualize.legend([label], spec.palette, spec.classes, row.shape[1], shares=True)
    return np.concatenate([_title(title, row.shape[1]), row, legend])


def _pair(photo: np.ndarray, label: np.ndarray, spec: DatasetSpec, side: int) -> np.ndarray:
    """[image | label over image], longer side at most `side`; small ones are enlarged by whole factors, so that pixels stay pixels."""
    longest = max(label.shape)
    scale = side // longest if longest <= side else side / longest
    size = tuple(max(round(n * scale), 1) for n in label.shape[::-1])
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    photo = np.asarray(Image.fromarray(photo).resize(size, how))
    ids = np.asarray(Image.fromarray(label.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    over = visualize.blend(photo, ids, spec.palette, 0.6)
    return np.concatenate([photo, np.full((size[1], GAP, 3), 255, np.uint8), over], axis=1)


def _title(text: str, width: int) -> np.ndarray:
    bar = Image.new("RGB", (width, 26), visualize.BACKGROUND)
    font = choose_font(text, 14)
    text, font = (
        (text.encode("ascii", "replace").decode(), ImageFont.load_default(14))
        if font is None
        else (text, font)
    )
    ImageDraw.Draw(bar).text((4, 13), text, visualize.INK, font, anchor="lm")
    return np.asarray(bar)


def sheet(
    cells: Sequence[np.ndarray], labels: Sequence[np.ndarray], spec: DatasetSpec
) -> np.ndarray:
    """All cells in a grid over one legend, RGB uint8."""
    columns = min(SHEET_COLUMNS, len(cells))
    height, width = (max(cell.shape[axis] for cell in cells) + 2 * GAP for axis in (0, 1))
    grid = np.full((-(-len(cells) // columns) * height, columns * width, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        top, left = number // columns * height + GAP, number % columns * width + GAP
        grid[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return np.concatenate(
        [grid, visualize.legend(labels, spec.palette, spec.classes, grid.shape[1], shares=True)]
    )
