"""Batches for training and samples for evaluation.

Sample i of global batch k is a function of (seed, k, i) and of nothing else, so neither the number of devices,
processes and workers nor where a run was resumed changes what the model sees. The position is the next batch's number.
"""

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxseg.data.datasets import DataError, get_spec
from jaxseg.data.sources import Source, open_source
from jaxseg.data.transforms import Augment, rescaled_size, resize_image

THREADS = min(max(os.cpu_count() or 1, 2), 16)  # that read ahead where num_workers is 0; each makes whole batches
AHEAD = THREADS + 2  # batches ready or being made


# --- Training ---------------------------------------------------------------------------------------------------------


class TrainBatches:
    """Iterator of {image [D, B, H, W, C] uint8, label [D, B, H, W] int32, size [D, B, 2] int32}: `train_batches`."""

    def __init__(self, order: Any, batches: Any, files: Sequence[str], start: int):
        self._order, self._batches, self._files = order, batches, files
        self._iterator: Any = None
        self.position = start

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = iter(self._batches)
        batch = next(self._iterator)
        self.position += 1
        return batch

    def names(self, k: int) -> list[str]:
        """The image files (of `shapes` the records) of global batch k, in order, of all devices and processes."""
        return [self._files[index] for index in self._order[k]]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


class LoadRows:
    """(number of a global batch, its record numbers) -> the rows [first, first + devices * B) as arrays [D, B, ...]."""

    def __init__(self, source: Source, augment: Augment, *, seed: int, first: int, devices: int, rows: int):
        self.source, self.augment, self.seed = source, augment, seed
        self.first, self.devices, self.rows = first, devices, rows

    def __call__(self, k: int, order: np.ndarray) -> dict[str, np.ndarray]:
        cv2.setNumThreads(
            1
        )  # batches are made side by side already; OpenCV's own threads would only fight for the cores
        height, width = self.augment.crop_size
        batch = {
            "image": np.empty((self.rows, height, width, 3), np.uint8),
            "label": np.empty((self.rows, height, width), np.int32),
            "size": np.empty((self.rows, 2), np.int32),
        }
        for row in range(self.rows):
            rng = np.random.default_rng((self.seed, k, self.first + row))
            image, label = self.source.read(int(order[self.first + row]))
            batch["image"][row], batch["label"][row], batch["size"][row] = self.augment(rng, image, label)
        return {key: value.reshape(self.devices, -1, *value.shape[1:]) for key, value in batch.items()}


def train_batches(
    config: ConfigDict, *, devices: int, start: int = 0, process_index: int = 0, process_count: int = 1
) -> TrainBatches:
    """Endless augmented batches from number `start` on, in an order that differs every epoch.

    devices: of this process. It gets the rows [p, p + 1) * config.batch_size / process_count of every global batch, and
    reads no others. Raises DataError if the data is missing or the batch does not divide.
    """
    import grain

    parts = devices * process_count
    if config.batch_size < 1 or config.batch_size % parts:
        raise DataError(f"config.batch_size={config.batch_size} is global and must divide among {parts} devices.")
    data, rows = config.dataset, config.batch_size // process_count
    check_channels(data)
    source = open_source(get_spec(data.name, data.root), data.root, data.train_split)
    augment = Augment(
        crop_size=tuple(data.crop_size), resize=tuple(data.resize), ratio_range=tuple(data.ratio_range),
        cat_max_ratio=data.cat_max_ratio, flip=data.flip, photometric=data.photometric,
    )  # fmt: skip
    load = LoadRows(source, augment, seed=config.seed, first=process_index * rows, devices=devices, rows=rows)
    order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat().batch(config.batch_size)
    batches = order.map_with_index(load)[start:]
    if data.num_workers:
        _parse_flags()
        options = grain.MultiprocessingOptions(num_workers=data.num_workers, per_worker_buffer_size=2)
        iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(
            options
        )
    else:
        iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD))
    return TrainBatches(order, iterable, source.files, start)


def _parse_flags() -> None:
    """Grain's workers read absl's flags, which are unparsed where the caller is no absl app (a notebook, a test)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def check_channels(data: ConfigDict) -> None:
    """DataError unless config.dataset asks for what can be read."""
    if data.channels != 3:
        raise DataError(
            f"config.dataset.channels={data.channels}: images are read as RGB, 3 channels; grey ones are repeated."
        )


# --- Evaluation -------------------------------------------------------------------------------------------------------


class EvalSamples(Sequence):
    """Random access to {image [h, w, C] uint8, label [H, W] int32, name}, read when asked for; see `eval_samples`."""

    def __init__(self, source: Source, spec: Any, resize: Sequence[int]):
        self._source, self.spec, self._resize = source, spec, tuple(resize)
        self.names = [name.rsplit("/", 1)[-1] for name in source.names]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, label = self._source.read(index % len(self))
        return {"image": resize_image(image, self._resize), "label": label.astype(np.int32), "name": self.names[index]}

    def shape(self, index: int) -> tuple[int, int]:
        """(h, w) of the resized image, from the file's header."""
        return rescaled_size(self._source.shape(index), self._resize)


def eval_samples(config: ConfigDict, split: str | None = None) -> EvalSamples:
    """The samples that config.eval names (else config.dataset's), by default of config.dataset.val_split.

    Images are resized to config.eval.resize, ratio kept, bilinear; labels keep their size. Raises DataError.
    """
    spec, root = evaluated(config)
    check_channels(config.dataset)
    return EvalSamples(open_source(spec, root, split or config.dataset.val_split), spec, config.eval.resize)


def evaluated(config: ConfigDict) -> tuple[Any, str]:
    """(spec, root) of the data set to evaluate on. Raises DataError if its classes are not those trained."""
    trained = get_spec(config.dataset.name, config.dataset.root)
    if config.eval.dataset in ("", config.dataset.name):
        root = config.eval.root or config.dataset.root
        return (get_spec(config.dataset.name, root) if config.eval.root else trained), root
    spec = get_spec(config.eval.dataset, config.eval.root)
    if spec.num_classes != trained.num_classes:
        raise DataError(
            f"config.eval.dataset '{spec.name}' has {spec.num_classes} classes but config.dataset.name "
            f"'{trained.name}' has {trained.num_classes}; evaluate on a data set with the same classes."
        )
    return spec, config.eval.root
