"""Batches for training and samples for evaluation.

Sample i of global batch k is a function of (seed, k, i) and of nothing else, so neither the number of devices,
processes and workers nor where a run was resumed changes what the model sees. The position is the next batch's number.
"""

import contextlib
import ctypes
import dataclasses
import functools
import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxseg.config.defaults import CONCAT
from jaxseg.data import label_counts as histogram
from jaxseg.data.augment.transforms import Augment, rescaled_size, resize_image, scaled_views
from jaxseg.data.catalog import get_spec
from jaxseg.data.class_order import config_spec, match_classes
from jaxseg.data.decode.tiff import silence_nodata
from jaxseg.data.sources import Joined, Source, open_source
from jaxseg.data.spec import DatasetSpec
from jaxseg.data.values import check_finite
from jaxseg.errors import DataError

log = logging.getLogger(__name__)

THREADS = min(
    max(os.cpu_count() or 1, 2), 16
)  # that read ahead where num_workers is 0; each makes whole batches
ENDLESS = 2**40  # samples
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
AHEAD = THREADS + 2  # batches ready or being made


# --- Training ---------------------------------------------------------------------------------------------------------


class TrainBatches:
    """Iterator of {image [D, B, H, W, C] uint8, label [D, B, H, W] uint8, size [D, B, 2] int32}: `train_batches`."""

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

    def indices(self, k: int) -> list[int]:
        """The numbers of the training source's samples in global batch k."""
        return [int(index) for index in self._order[k]]

    def names(self, k: int) -> list[str]:
        """The image files (of `shapes` the records) of global batch k, in order, of all devices and processes."""
        return [self._files[index] for index in self.indices(k)]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


class LoadRows:
    """(number of a global batch, its record numbers) -> the rows [first, first + devices * B) as arrays [D, B, ...]."""

    def __init__(
        self,
        source: Source,
        augment: Augment,
        *,
        channels: int,
        dtype: str,
        seed: int,
        first: int,
        devices: int,
        rows: int,
    ):
        self.source, self.augment, self.channels, self.dtype, self.seed = (
            source,
            augment,
            channels,
            dtype,
            seed,
        )
        self.first, self.devices, self.rows = first, devices, rows

    def __call__(self, k: int, order: np.ndarray) -> dict[str, np.ndarray]:
        cv2.setNumThreads(
            1
        )  # batches are made side by side already; OpenCV's own threads would only fight for the cores
        _keep_memory()
        _start_worker()
        height, width = self.augment.crop_size
        batch = {
            "image": np.empty((self.rows, height, width, self.channels), self.dtype),
            "label": np.empty(
                (self.rows, height, width), np.uint8
            ),  # a quarter of the traffic of int32
            "size": np.empty((self.rows, 2), np.int32),
        }
        for row in range(self.rows):
            rng = np.random.default_rng((self.seed, k, self.first + row))
            image, label = read(self.source, int(order[self.first + row]), self.dtype)
            draw = functools.partial(self._draw, rng)
            batch["image"][row], batch["label"][row], batch["size"][row] = self.augment(
                rng, image, label, draw
            )
        return {
            key: value.reshape(self.devices, -1, *value.shape[1:]) for key, value in batch.items()
        }

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return read(self.source, int(rng.integers(len(self.source))), self.dtype)


def read(source: Source, index: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) of a source; DataError if the image is of another dtype."""
    image, label = source.read(index)
    check_dtype(image.dtype.name, dtype, source.files[index])
    check_finite(image, source.files[index])
    return image, label


def check_dtype(dtype: str, expected: str, file: str) -> None:
    """DataError unless an image has the dtype of the data set."""
    if dtype != expected:
        raise DataError(
            f"{file}: an image of {dtype}, but config.dataset.dtype is {expected} (if nobody set it, because the first image is): "
            "save all images of a data set alike."
        )


def train_batches(
    config: ConfigDict,
    *,
    devices: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Endless augmented batches from number `start` on, in an order that differs every epoch.

    devices: of this process. It gets the rows [p, p + 1) * config.batch_size / process_count of every global batch, and
    reads no others. Raises DataError if the data is missing or the batch does not divide.
    """
    import grain

    parts = devices * process_count
    if config.batch_size < 1 or config.batch_size % parts:
        raise DataError(
            f"config.batch_size={config.batch_size} is global and must divide among {parts} devices."
        )
    data, rows = config.dataset, config.batch_size // process_count
    source = train_source(data)
    augment = Augment(
        **{field.name: _plain(data[field.name]) for field in dataclasses.fields(Augment)}
    )
    load = LoadRows(
        source,
        augment,
        channels=data.channels,
        dtype=data.dtype,
        seed=config.seed,
        first=process_index * rows,
        devices=devices,
        rows=rows,
    )
    indices = sample_indices(source, data.class_balance)
    epochs = ENDLESS // len(indices) + 1  # Grain's own endlessness overflows with batches of one
    order = (
        grain.MapDataset.source(indices)
        .seed(config.seed)
        .shuffle()
        .repeat(epochs)
        .batch(config.batch_size)
    )
    batches = order.map_with_index(load)[start:]
    if data.num_workers:
        _parse_flags()
        options = grain.MultiprocessingOptions(
            num_workers=data.num_workers, per_worker_buffer_size=2
        )
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        iterable = batches.to_iter_dataset(reading).mp_prefetch(options)
    else:
        iterable = batches.to_iter_dataset(
            grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        )
    return TrainBatches(order, iterable, source.files, start)


@functools.cache
def _keep_memory() -> None:
    """Let glibc keep freed memory: getting each image's megabytes from the system anew took a tenth of the loading time."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most it accepts
        library.mallopt(M_TRIM_THRESHOLD, 512 * 2**20)


@functools.cache
def _start_worker() -> None:
    """In a worker process: log like the scripts do, and end when the training process does, however it ends; a killed one
    cannot stop its workers."""
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
        logging.getLogger("tifffile").addFilter(silence_nodata)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) else value


def train_source(data: ConfigDict) -> Source:
    """The training samples: config.dataset's train_split, then those of its `concat`, each as often as its `repeat` says.

    Raises DataError if a data set of `concat` has other classes.
    """
    main = open_source(
        config_spec(data), data.root, data.train_split, channels=data.channels, source=data.source
    )
    sources, places = [main], [(0, index) for index in range(len(main))]
    for key, part in joined_sets(data).items():
        spec = joined_spec(key, part, data, main.spec.classes)
        sources.append(
            open_source(
                spec, part.root, part.train_split, channels=data.channels, source=part.source
            )
        )
        places += [(len(sources) - 1, index) for index in range(len(sources[-1]))] * part.repeat
    return Joined(sources, places) if len(sources) > 1 else main


def joined_sets(data: ConfigDict) -> dict[str, ConfigDict]:
    """The entries of config.dataset.concat, complete."""
    return {
        key: ConfigDict(CONCAT | dict(train_split=data.train_split) | part.to_dict())
        for key, part in data.concat.items()
    }


def joined_spec(
    key: str, part: ConfigDict, data: ConfigDict, classes: Sequence[str]
) -> DatasetSpec:
    """The spec of an entry of config.dataset.concat, with the run's `classes`. Raises DataError if it has others."""
    spec = get_spec(part.name, part.root, part.source)
    return match_classes(
        spec, classes, data.get("match_classes", "order"), f"dataset.concat.{key}", part.root
    )


def open_named(part: ConfigDict, data: ConfigDict, split: str) -> Source:
    """A split of the data set that `part` names (name, root, source), its images read as config.dataset says."""
    return open_source(
        get_spec(part.name, part.root, part.source),
        part.root,
        split,
        source=part.source,
        **image_options(data),
    )


def image_options(data: ConfigDict) -> dict[str, Any]:
    """What config.dataset says about reading images, as `open_source` takes it; missing data become the mean, 0 for the network."""
    return dict(
        channels=data.channels, nodata=data.nodata, max_pixels=data.max_pixels, fill=data.image_mean
    )


def sample_indices(source: Source, class_balance: float) -> range | list[int]:
    """The numbers of an epoch's samples: each once, or, with a threshold, as often as its rarest class asks for.

    Repeat-factor sampling (arXiv:1908.03195); reads every label once, the counts are cached.
    """
    if not class_balance:
        return range(len(source))
    factors = histogram.repeat_factors(
        histogram.count_labels(source, source.spec.num_classes, progress=True)[:, :-1],
        class_balance,
    )
    log.info("config.dataset.class_balance=%g: %d of %d images are shown more than once an epoch, up to %d times", class_balance,
             (factors > 1).sum(), len(factors), factors.max())  # fmt: skip
    return np.repeat(np.arange(len(source)), factors).tolist()


def _parse_flags() -> None:
    """Grain's workers read absl's flags, which are unparsed where the caller is no absl app (a notebook, a test)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


# --- Evaluation -------------------------------------------------------------------------------------------------------


class EvalSamples(Sequence):
    """Random access to {image [h, w, C], label [H, W] int32, name, views}, read when asked for; see `eval_samples`."""

    def __init__(
        self, source: Source, resize: Sequence[int], dtype: str, scales: Sequence[float] = (1.0,)
    ):
        self._source, self.spec, self._resize, self._dtype = (
            source,
            source.spec,
            tuple(resize),
            dtype,
        )
        self._scales = tuple(scales)
        short = [name.rsplit("/", 1)[-1] for name in source.names]
        self.names = short if len(set(short)) == len(short) else list(source.names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, label = read(self._source, index % len(self), self._dtype)
        # Of the image as it is read, so that no scale is resized twice.
        views = scaled_views(image, self._resize, self._scales)
        resized = (
            views[self._scales.index(1)] if 1 in self._scales else resize_image(image, self._resize)
        )
        return {
            "image": resized,
            "label": label.astype(np.int32),
            "name": self.names[index],
            "views": views,
        }

    def shape(self, index: int) -> tuple[int, int]:
        """(h, w) of the resized image, from the file's header."""
        return rescaled_size(self._source.header(index).size, self._resize)


def eval_samples(config: ConfigDict, split: str | None = None) -> EvalSamples:
    """The samples that config.eval names (else config.dataset's), by default of config.dataset.val_split.

    Images are resized to config.eval.resize, ratio kept, bilinear, and "views" are images of config.eval.scales times that;
    labels keep their size. Raises DataError.
    """
    part, spec = evaluated(config)
    source = open_source(
        spec,
        part.root,
        split or config.dataset.val_split,
        source=part.source,
        **image_options(config.dataset),
    )
    return EvalSamples(source, config.eval.resize, config.dataset.dtype, config.eval.scales)


def evaluated(config: ConfigDict) -> tuple[ConfigDict, DatasetSpec]:
    """(name, root and source, spec in the run's order) of the data set to evaluate on. Raises DataError for other classes."""
    data, run = config.dataset, config.eval
    other = run.dataset not in ("", data.name)
    part = ConfigDict(
        dict(
            name=run.dataset if other else data.name,
            root=run.root or ("" if other else data.root),
            source=run.source or ("files" if other else data.source),
        )
    )
    spec = get_spec(part.name, part.root, part.source)
    named = next((f"eval.{key}" for key in ("root", "dataset", "source") if run[key]), "")
    classes = data.get("classes", ()) or (
        get_spec(data.name, data.root, data.source).classes if named else ()
    )
    return part, match_classes(
        spec, classes, data.get("match_classes", "order"), named or "dataset.root", part.root
    )
