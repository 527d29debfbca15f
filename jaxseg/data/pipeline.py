"""Batches for training and samples for evaluation.

Sample i of global batch k is a function of (seed, k, i) and of nothing else: neither the number of
devices, processes and workers nor the step at which a run was resumed changes what the model sees.
The position of an iterator is the number of its next batch.
"""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxseg.config.schema import ConcatConfig, DatasetConfig, EvalConfig
from jaxseg.data import label_counts
from jaxseg.data.augment.transforms import Augment, rescaled_size, resize_image, scaled_views
from jaxseg.data.catalog import get_spec
from jaxseg.data.class_order import match_classes
from jaxseg.data.process import start_worker
from jaxseg.data.sources import ConcatSource, Source, open_source
from jaxseg.data.spec import DatasetRef, DatasetSpec
from jaxseg.data.values import check_finite
from jaxseg.errors import DataError

log = logging.getLogger(__name__)

# Threads that read ahead where num_workers is 0; each makes whole batches.
THREADS = min(max(os.cpu_count() or 1, 2), 16)
BUFFER = THREADS + 2  # batches that are ready or being made
ENDLESS = 2**40  # samples


# --- Training ---


class TrainBatches:
    """Iterator of training batches; see `train_batches`.

    Attributes:
        position: Number of the next batch.
    """

    def __init__(
        self,
        order: Sequence[Any],
        open_batches: Callable[[], Iterator[dict[str, np.ndarray]]],
        files: Sequence[str],
        start: int,
    ):
        """Create the iterator.

        Args:
            order: The sample indices of every global batch.
            open_batches: Returns an iterator of the batches from `start` on.
            files: Image file of every sample.
            start: Number of the first batch.
        """
        self._order, self._open_batches, self._files = order, open_batches, files
        self._iterator: Any = None
        self.position = start

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._open_batches()
        batch = next(self._iterator)
        self.position += 1
        return batch

    def indices(self, k: int) -> list[int]:
        """Return the indices, in the training source, of the samples of global batch k."""
        return [int(index) for index in self._order[k]]

    def names(self, k: int) -> list[str]:
        """Return the image files (or record names) of global batch k, over all processes."""
        return [self._files[index] for index in self.indices(k)]

    def close(self) -> None:
        """Stop reading ahead."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


@dataclasses.dataclass(frozen=True)
class BatchLoader:
    """Make this process's rows of a global batch; picklable, as worker processes receive it.

    Attributes:
        source: The training samples.
        augment: Augmentation.
        channels: C of the images.
        dtype: Data type of the images.
        seed: Seed of the run.
        first: First row of a global batch that belongs to this process.
        rows: Number of its rows, devices times B.
        devices: Number of its devices D.
    """

    source: Source
    augment: Augment
    channels: int
    dtype: str
    seed: int
    first: int
    rows: int
    devices: int

    def __call__(self, k: int, order: np.ndarray) -> dict[str, np.ndarray]:
        """Return global batch k, whose sample indices are `order`, as arrays [D, B, ...]."""
        height, width = self.augment.crop_size
        batch = {
            "image": np.empty((self.rows, height, width, self.channels), self.dtype),
            "label": np.empty((self.rows, height, width), np.uint8),  # a quarter of int32's traffic
            "size": np.empty((self.rows, 2), np.int32),
        }
        for row in range(self.rows):
            rng = np.random.default_rng((self.seed, k, self.first + row))
            image, label = read_pair(self.source, int(order[self.first + row]), self.dtype)
            draw = functools.partial(self._draw, rng)
            batch["image"][row], batch["label"][row], batch["size"][row] = self.augment(
                rng, image, label, draw
            )
        return {
            key: value.reshape(self.devices, -1, *value.shape[1:]) for key, value in batch.items()
        }

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a random sample."""
        return read_pair(self.source, int(rng.integers(len(self.source))), self.dtype)


def read_pair(source: Source, index: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its label.

    Args:
        source: The samples.
        index: Index of the sample.
        dtype: Data type that the image must have.

    Returns:
        The image [H, W, C] of this dtype, and the label uint8 [H, W].

    Raises:
        DataError: They cannot be read, or the image is not finite or of another dtype.
    """
    image, label = source.read(index)
    check_dtype(image.dtype.name, dtype, source.files[index])
    check_finite(image, source.files[index])
    return image, label


def check_dtype(dtype: str, expected: str, file: str) -> None:
    """Check that an image has the dtype of the data set.

    Args:
        dtype: Data type of the image.
        expected: That of the data set.
        file: The image file, for the error.

    Raises:
        DataError: They differ.
    """
    if dtype != expected:
        raise DataError(
            f"an image of {dtype}, but config.dataset.dtype is {expected} (unless it was set, the "
            "dtype of the first image)",
            file=file,
            field="dataset.dtype",
            hint="save all images of a data set alike",
        )


def train_batches(
    dataset: DatasetConfig,
    spec: DatasetSpec,
    *,
    batch_size: int,
    seed: int,
    devices: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Return endless augmented batches, in an order that differs every epoch.

    Args:
        dataset: The data, and how they are augmented.
        spec: The spec of `dataset` (`catalog.load_spec`).
        batch_size: Global batch size.
        seed: Seed of order and augmentation.
        devices: Number of devices D of this process.
        start: Number of the first batch.
        process_index: Number of this process. It reads rows [p, p + 1) * batch_size / process_count
            of every global batch, and no others.
        process_count: Number of processes.

    Returns:
        Iterator of {"image": uint8, uint16 or float32 [D, B, H, W, C] (`dataset.dtype`), "label":
        uint8 [D, B, H, W], "size": int32 [D, B, 2], (height, width) before padding}.

    Raises:
        DataError: The data are missing, or the batch size does not divide.
    """
    parts = devices * process_count
    if batch_size < 1 or batch_size % parts:
        raise DataError(
            f"config.batch_size={batch_size} is global and must divide among {parts} devices",
            field="batch_size",
        )
    rows = batch_size // process_count
    source = train_source(dataset, spec)
    names = [field.name for field in dataclasses.fields(Augment)]
    loader = BatchLoader(
        source,
        Augment(**{name: getattr(dataset, name) for name in names}),
        channels=dataset.channels,
        dtype=dataset.dtype,
        seed=seed,
        first=process_index * rows,
        rows=rows,
        devices=devices,
    )
    indices = sample_indices(source, dataset.class_balance)
    epochs = ENDLESS // len(indices) + 1  # Grain's own endlessness overflows with batches of one
    order = grain.MapDataset.source(indices).seed(seed).shuffle().repeat(epochs).batch(batch_size)
    batches = order.map_with_index(loader)[start:]
    open_batches = functools.partial(_open_batches, batches, dataset.num_workers)
    return TrainBatches(order, open_batches, source.files, start)


def _open_batches(batches: grain.MapDataset, num_workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Return an iterator that reads ahead, in worker processes, or in threads if there are none."""
    if not num_workers:
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BUFFER)
        return iter(batches.to_iter_dataset(options))
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    dataset = batches.to_iter_dataset(options).mp_prefetch(workers, worker_init_fn=start_worker)
    return _WorkerIterator(dataset)


class _WorkerIterator:
    """Iterator of a Grain data set whose worker processes are started by the first `next`.

    Grain reads absl's flags when it starts them. Where nobody has parsed the flags (a notebook, a
    test) they count as parsed for that moment only, so that the program can still parse them later.
    """

    def __init__(self, dataset: grain.IterDataset):
        self._dataset = dataset
        self._iterator: Any = None

    def __iter__(self) -> "_WorkerIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is not None:
            return next(self._iterator)
        with _parsed_flags():
            self._iterator = iter(self._dataset)
            return next(self._iterator)

    def close(self) -> None:
        """Stop the worker processes."""
        if self._iterator is not None:
            self._iterator.close()


@contextlib.contextmanager
def _parsed_flags() -> Iterator[None]:
    """Let absl's flags have their defaults in this block, if they are not parsed."""
    if flags.FLAGS.is_parsed():
        yield
        return
    absl_log = logging.getLogger("absl")  # whose level follows a flag
    level = absl_log.level
    flags.FLAGS.mark_as_parsed()
    try:
        yield
    finally:
        flags.FLAGS.unparse_flags()
        absl_log.setLevel(level)


def train_source(dataset: DatasetConfig, spec: DatasetSpec) -> Source:
    """Open the training samples: `train_split`, then each data set of `concat` `repeat` times.

    Args:
        dataset: The data sets, and how their images are read.
        spec: The spec of `dataset` (`catalog.load_spec`).

    Raises:
        DataError: Data are missing, or a data set of `concat` has other classes.
    """
    main = _open_split(spec, dataset, dataset, dataset.train_split)
    sources, places = [main], [(0, index) for index in range(len(main))]
    for label, entry in dataset.concat.items():
        split = entry.train_split or dataset.train_split
        added = _open_split(concat_spec(label, entry, dataset, spec), entry, dataset, split)
        places += [(len(sources), index) for index in range(len(added))] * entry.repeat
        sources.append(added)
    return ConcatSource(sources, places) if len(sources) > 1 else main


def _open_split(
    spec: DatasetSpec,
    ref: DatasetConfig | ConcatConfig | DatasetRef,
    dataset: DatasetConfig,
    split: str,
) -> Source:
    """Open a split of the data set at `ref`, its images read as `dataset` says."""
    return open_source(spec, ref.root, split, source=ref.source, **image_options(dataset))


def concat_spec(
    label: str, entry: ConcatConfig, dataset: DatasetConfig, spec: DatasetSpec
) -> DatasetSpec:
    """Return the spec of an entry of `dataset.concat`, with the classes of the run.

    Args:
        label: Label of the entry.
        entry: The entry.
        dataset: The data set that it is added to.
        spec: The spec of `dataset`, whose classes are those of the run.

    Raises:
        DataError: It has other classes.
    """
    field = f"dataset.concat.{label}"
    own = get_spec(entry.name, entry.root, entry.source)
    return match_classes(own, spec.classes, dataset.match_classes, field, entry.root)


def image_options(dataset: DatasetConfig) -> dict[str, Any]:
    """Return the options of `open_source` and `ImageOptions` that `dataset` gives.

    Missing data become the mean, which is 0 once normalised.
    """
    return {
        "channels": dataset.channels,
        "nodata": dataset.nodata,
        "max_pixels": dataset.max_pixels,
        "fill": dataset.image_mean,
    }


def sample_indices(source: Source, class_balance: float) -> Sequence[int]:
    """Return the sample indices of one epoch.

    Repeat-factor sampling (arXiv:1908.03195) repeats images of rare classes, those that occur in a
    smaller share of the images than `class_balance`. It reads every label once; the counts are
    cached.

    Args:
        source: The training samples.
        class_balance: Share of the images below which a class is repeated; 0 for none.

    Raises:
        DataError: A label cannot be read.
    """
    if not class_balance:
        return range(len(source))
    counts = label_counts.count_labels(source, source.spec.num_classes, progress=True)
    factors = label_counts.repeat_factors(counts[:, :-1], class_balance)
    log.info(
        "config.dataset.class_balance=%g: %d of %d images are shown more than once an epoch, up to "
        "%d times",
        class_balance,
        (factors > 1).sum(),
        len(factors),
        factors.max(),
    )
    return np.repeat(np.arange(len(source)), factors).tolist()


# --- Evaluation ---


class EvalSamples(Sequence):
    """Random access to the samples of a split, each read when it is indexed; see `eval_samples`.

    Attributes:
        spec: The data set, its classes in the order of the run.
        names: Name of each sample, without folders where names stay unique.
    """

    def __init__(
        self, source: Source, resize: Sequence[int], dtype: str, scales: Sequence[float] = (1.0,)
    ):
        """Create the samples of `source`.

        Args:
            source: Images and labels.
            resize: (long, short) side in pixels, (0, 0) for the image's own size.
            dtype: Data type that the images must have.
            scales: Ratios of the "views".
        """
        self.spec = source.spec
        self._source, self._dtype = source, dtype
        self._resize, self._scales = tuple(resize), tuple(scales)
        short = [name.rsplit("/", 1)[-1] for name in source.names]
        self.names = short if len(set(short)) == len(short) else list(source.names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, label = read_pair(self._source, index % len(self), self._dtype)
        # From the image as it is read, so that no scale is resized twice.
        views = scaled_views(image, self._resize, self._scales)
        if 1 in self._scales:
            resized = views[self._scales.index(1)]
        else:
            resized = resize_image(image, self._resize)
        return {
            "image": resized,
            "label": label.astype(np.int32),
            "name": self.names[index],
            "views": views,
        }

    def shape(self, index: int) -> tuple[int, int]:
        """Return (h, w) of the resized image, from the file's header."""
        return rescaled_size(self._source.header(index).size, self._resize)


def eval_samples(
    dataset: DatasetConfig,
    evaluation: EvalConfig,
    spec: DatasetSpec | None = None,
    split: str | None = None,
) -> EvalSamples:
    """Return the samples to evaluate on.

    Each is {"image": [h, w, C] resized bilinearly to `evaluation.resize`, ratio kept, "label":
    int32 [H, W] at its own size, "name": str, "views": one image for each of `evaluation.scales`}.

    Args:
        dataset: The training data: its `val_split` is read, with its options for reading images.
        evaluation: Names another data set, if any, and gives the sizes.
        spec: The spec of `dataset`; see `eval_dataset`.
        split: Another split.

    Raises:
        DataError: Data are missing, or of other classes.
    """
    ref, own = eval_dataset(dataset, evaluation, spec)
    source = _open_split(own, ref, dataset, split or dataset.val_split)
    return EvalSamples(source, evaluation.resize, dataset.dtype, evaluation.scales)


def eval_dataset(
    dataset: DatasetConfig, evaluation: EvalConfig, spec: DatasetSpec | None = None
) -> tuple[DatasetRef, DatasetSpec]:
    """Return the data set to evaluate on, and its spec with the classes in the order of the run.

    Args:
        dataset: The training data.
        evaluation: Names another data set, or "" for the same.
        spec: The spec of `dataset` (`catalog.load_spec`). Without it the classes are
            `dataset.classes`, and the training data need not exist.

    Raises:
        DataError: The data set cannot be read, or has other classes.
    """
    trained = DatasetRef(dataset.name, dataset.root, dataset.source)
    ref = trained
    if evaluation.dataset not in ("", dataset.name):
        ref = DatasetRef(evaluation.dataset, evaluation.root, evaluation.source or "files")
    elif evaluation.root or evaluation.source:
        root, source = evaluation.root or dataset.root, evaluation.source or dataset.source
        ref = DatasetRef(dataset.name, root, source)
    if spec is not None and ref == trained:
        return ref, spec
    given = [f"eval.{key}" for key in ("root", "dataset", "source") if getattr(evaluation, key)]
    classes = spec.classes if spec is not None else dataset.classes
    if given and not classes:
        classes = get_spec(dataset.name, dataset.root, dataset.source).classes
    own = get_spec(ref.name, ref.root, ref.source)
    field = given[0] if given else "dataset.root"
    return ref, match_classes(own, classes, dataset.match_classes, field, ref.root)
