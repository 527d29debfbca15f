"""Evaluation: every image of a split exactly once, on all local devices, counted in integers.

Whole images of equal size share a batch [D, B, h, w, C]; what is missing in the last batch of a size is filled with
labels that are all 255 and so count nothing. Sliding windows are dealt out to the devices, B each. Several processes
take every n-th image each and add their counts. The split is read ahead in threads while the devices work.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseg import precision, visualize
from jaxseg.constants import IGNORE
from jaxseg.data.augment.transforms import scaled_views
from jaxseg.errors import DataError
from jaxseg.files import expand, write_json
from jaxseg.inference import predictor as inference
from jaxseg.metrics import confusion_matrix, summarize

log = logging.getLogger(__name__)

READERS = 4  # threads that read samples


class Result(NamedTuple):
    """Some evaluated images; arrays are on the devices, and ids fetched for those images only whose picture is wanted.

    Attributes:
        confusion: counts [..., K, K].
        ids: class ids [..., H, W] of every image.
        nonfinite: [...], how many pixels of each have class scores that are not finite.
        images: (index, sample, its place in `ids` and `nonfinite`); other places hold copies that fill a batch.
    """

    confusion: jax.Array
    ids: jax.Array
    nonfinite: jax.Array
    images: list[tuple[int, dict, tuple[int, ...]]]


class Counts(NamedTuple):
    """What is counted over a split: the confusion matrix [K, K] int64, and the pixels whose class scores are not finite."""

    confusion: np.ndarray
    nonfinite_pixels: int


# --- Samples ----------------------------------------------------------------------------------------------------------


def read_ahead(
    samples: Sequence[dict], order: Sequence[int], ahead: int
) -> Iterator[tuple[int, dict]]:
    """(index, sample) in the given order, at most `ahead` of them being read or waiting."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque = deque()
        try:
            for index in order:
                waiting.append((index, pool.submit(samples.__getitem__, index)))
                if len(waiting) > ahead:
                    index, sample = waiting.popleft()
                    yield index, sample.result()
            for index, sample in waiting:
                yield index, sample.result()
        finally:
            for _, sample in waiting:
                sample.cancel()


def check_label(sample: dict, num_classes: int) -> None:
    """DataError if a label is neither a class nor 255: such pixels would vanish from the counts."""
    label = sample["label"]
    wrong = label[(label != IGNORE) & ((label < 0) | (label >= num_classes))]
    if wrong.size:
        raise DataError(
            f"the label of {sample['name']} holds {int(wrong[0])}, which is neither one of the {num_classes} classes "
            f"(0..{num_classes - 1}) nor {IGNORE} (ignore)", file=sample["name"],
        )  # fmt: skip


def batches(stream: Iterable[tuple[int, dict]], size: int) -> Iterator[list[tuple[int, dict]]]:
    """Lists of at most `size` samples whose views, and labels, are equally large.

    A list that is not full is kept until the image size changes, so images of one size should follow each other.
    """
    for _, run in itertools.groupby(stream, key=lambda item: item[1]["image"].shape):
        waiting: dict[tuple, list] = {}
        for item in run:
            key = (item[1]["label"].shape, *(view.shape for view in item[1]["views"]))
            group = waiting.setdefault(key, [])
            group.append(item)
            if len(group) == size:
                yield waiting.pop(key)
        yield from waiting.values()


def visit_order(samples: Sequence[dict], group: bool) -> list[int]:
    """This process's indices; with `group`, equal image sizes together (`samples.shape(i)` tells, else as they come)."""
    order = range(jax.process_index(), len(samples), jax.process_count())
    if not group or not hasattr(samples, "shape"):
        return list(order)
    shapes = {i: tuple(samples.shape(i)) for i in order}
    sizes = len(set(shapes.values()))
    if sizes > 1:
        log.info(
            "whole images of %d sizes: each compiles once (config.eval.mode='slide' compiles one window size)",
            sizes,
        )
    return sorted(order, key=lambda i: (shapes[i], i))


# --- Programs ---------------------------------------------------------------------------------------------------------


class _Same:
    """Hashes by identity: a Flax module with unhashable fields can then key a cache (which keeps it alive)."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def count_whole(
    model: Any, settings: inference.Settings, variables, batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`_count` of a batch: images [B, h, w, C] at every scale, and labels [B, H, W]."""
    images, labels = batch
    return _count(inference.predict(model, settings, variables, images, labels.shape[1:3]), labels)


@lru_cache(maxsize=4)
def _program(model: _Same, settings: inference.Settings, devices: tuple) -> Callable:
    """What runs on every device, cached so that evaluating again during training compiles nothing."""
    whole = settings.mode == "whole"
    function = partial(count_whole if whole else inference.network, model.value, settings)
    # Without collectives, so every process may call it as often as its share of the images asks for.
    make = partial(jax.pmap, function, in_axes=(None, 0), devices=devices)
    return inference.logged(make, "whole images" if whole else "windows")


@jax.jit
def _count(scores: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(counts [K, K], class ids, not finite pixels of each image) of scores [..., H, W, K] and labels [..., H, W]."""
    ids, nonfinite = inference.classify(scores)
    return confusion_matrix(ids, label, scores.shape[-1]), ids, nonfinite


def replicate(variables, devices: Sequence[jax.Device]):
    """Variables on every device, once, instead of with every batch."""
    mesh = jax.sharding.Mesh(np.array(devices), ("device",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def local(leaf):  # a training state that spans processes: this process's copy
        spans = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return jax.device_put(leaf.addressable_data(0) if spans else leaf, everywhere)

    return jax.tree.map(local, variables)


# --- The two ways through a split -------------------------------------------------------------------------------------


def _whole(
    program: Callable, variables, stream, devices: Sequence, per_device: int
) -> Iterator[Result]:
    size = len(devices) * per_device
    for group in batches(stream, size):
        views = [np.stack(view) for view in zip(*(sample["views"] for _, sample in group))]
        labels = np.stack([sample["label"] for _, sample in group])
        missing = size - len(group)
        if missing:
            views = [np.concatenate([view, np.repeat(view[-1:], missing, 0)]) for view in views]
            labels = np.concatenate(
                [labels, np.full((missing, *labels.shape[1:]), IGNORE, labels.dtype)]
            )
        batch = jax.tree.map(
            lambda x: x.reshape(len(devices), per_device, *x.shape[1:]), (views, labels)
        )
        yield Result(
            *program(variables, batch),
            [(*item, divmod(i, per_device)) for i, item in enumerate(group)],
        )


def _slide(
    program: Callable, variables, stream, devices: Sequence, settings: inference.Settings
) -> Iterator[Result]:
    waiting: deque = deque()

    def items():
        for index, sample in stream:
            waiting.append((index, sample))
            yield sample["views"], sample["label"].shape

    def call(windows: np.ndarray) -> jax.Array:
        logits = program(variables, windows.reshape(len(devices), -1, *windows.shape[1:]))
        # The sum over windows lives on one device.
        return jax.device_put(logits, devices[0]).reshape(len(windows), *logits.shape[2:])

    for scores in inference.predict_slide(call, settings, items(), len(devices)):
        index, sample = waiting.popleft()
        yield Result(*_count(scores, sample["label"]), [(index, sample, ())])


# --- The door ---------------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    variables,
    config,
    samples: Sequence[dict],
    *,
    devices: Sequence[jax.Device] | None = None,
    pictures: int = 0,
    save_picture: Callable[[str, np.ndarray], Any] | None = None,
    progress: bool = True,
) -> dict:
    """Evaluate a model on `samples` (see data.pipeline.eval_samples) as config.eval says.

    model: has `apply(variables, images, train=False) -> (logits [B, h, w, K], out)`; variables: its arrays, on host or
    devices. devices: local ones, all by default. pictures: how many images, spread over the split, to draw as panels
    [image | truth | prediction] for save_picture(name, uint8 [h, w, 3]). progress: one live line on a terminal.
    Returns metrics.summarize's dict plus nonfinite_pixels (of which a class score is not finite, so that their class
    means nothing), images, seconds, images_per_second (compilation included); every process gets the result over all of
    them.
    DataError: no samples, labels that are not classes, a model with another number of classes.
    """
    if not len(samples):
        raise DataError(
            "there is nothing to evaluate: the split holds no samples", field="dataset.val_split"
        )
    spec, start = samples.spec, time.perf_counter()
    if config.model.num_classes != len(spec.classes):
        raise DataError(
            f"the model has {config.model.num_classes} classes, the data set {spec.name!r} has {len(spec.classes)}",
            field="eval.dataset", hint="evaluate on a data set with the classes it was trained for",
        )  # fmt: skip
    wanted = set(np.linspace(0, len(samples) - 1, min(pictures, len(samples)), dtype=int).tolist())

    def look(index: int, sample: dict, prediction: Callable[[], np.ndarray]) -> None:
        if save_picture and index in wanted:
            save_picture(sample["name"], draw(sample, prediction(), spec))

    settings = inference.make_settings(config)
    counts = count(
        model, variables, settings, samples, devices=devices, look=look, progress=progress
    )
    seconds = time.perf_counter() - start
    speed = dict(images=len(samples), seconds=seconds, images_per_second=len(samples) / seconds)
    return (
        summarize(counts.confusion, spec.classes)
        | {"nonfinite_pixels": counts.nonfinite_pixels}
        | speed
    )


def count(
    model: Any,
    variables,
    settings: inference.Settings,
    samples: Sequence[dict],
    *,
    devices: Sequence[jax.Device] | None = None,
    look: Callable[[int, dict, Callable[[], np.ndarray]], None] | None = None,
    progress: bool = False,
) -> Counts:
    """What is counted over all samples and processes, K = len(samples.spec.classes); see `evaluate`.

    A sample's "views" are its image at each of settings.scales, "image" resized if there are none. Images whose class
    scores are not all finite are warned of. look(index, sample, prediction) sees every image of this process;
    prediction() fetches its class ids [H, W].
    """
    devices = tuple(jax.local_devices() if devices is None else devices)
    program, variables = _program(_Same(model), settings, devices), replicate(variables, devices)
    num_classes, size = len(samples.spec.classes), len(devices) * settings.batch_size
    whole = settings.mode == "whole"
    stream = _checked(
        read_ahead(samples, visit_order(samples, whole), READERS + size),
        num_classes,
        settings.scales,
    )
    way = (
        partial(_whole, per_device=settings.batch_size)
        if whole
        else partial(_slide, settings=settings)
    )
    results = way(program, variables, stream, devices)
    confusion, broken = np.zeros((num_classes, num_classes), np.int64), {}
    for result in _lagging(_with_progress(results, len(samples), progress)):
        confusion += (
            np.asarray(result.confusion, np.int64).reshape(-1, num_classes, num_classes).sum(0)
        )
        nonfinite = np.asarray(result.nonfinite)
        for index, sample, place in result.images:
            if nonfinite[place]:
                broken[sample["name"]] = broken.get(sample["name"], 0) + int(nonfinite[place])
            if look:
                look(index, sample, partial(_fetch, result.ids, place))
    _warn_of(broken)
    total = sum_over_processes(np.append(confusion, sum(broken.values())))
    return Counts(total[:-1].reshape(confusion.shape), int(total[-1]))


def _fetch(ids: jax.Array, place: tuple) -> np.ndarray:
    return np.asarray(ids[place])


def _warn_of(broken: dict[str, int]) -> None:
    """Log which images of this process have how many pixels without a meaningful class."""
    if broken:
        first, more = (
            next(iter(broken)),
            f" and {len(broken) - 1} more images" if len(broken) > 1 else "",
        )
        log.warning(
            "the class scores of %d pixels are NaN or infinite (in %s%s), so their classes mean nothing; where the model "
            "computes in float16, say --config.precision=float32 or bfloat16", sum(broken.values()), first, more,
        )  # fmt: skip


def _checked(
    stream: Iterable[tuple[int, dict]], num_classes: int, scales: Sequence[float]
) -> Iterator[tuple[int, dict]]:
    """The samples, their labels checked, each with its "views"."""
    for index, sample in stream:
        check_label(sample, num_classes)
        yield (
            index,
            sample
            if "views" in sample
            else sample | {"views": scaled_views(sample["image"], (0, 0), scales)},
        )


def _lagging(results: Iterable[Result]) -> Iterator[Result]:
    """The same results one later, so that the device has its next batch before the host waits for a result."""
    previous = None
    for result in results:
        if previous is not None:
            yield previous
        previous = result
    if previous is not None:
        yield previous


def _with_progress(results: Iterable[Result], total: int, show: bool) -> Iterator[Result]:
    """The same results, with one live line while they pass; silent where the output is not a terminal."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    columns = [
        bars.TextColumn("evaluating"), bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn("{task.fields[rate]:.1f} images/s"),
        bars.TimeRemainingColumn(),
    ]  # fmt: skip
    share = len(range(jax.process_index(), total, jax.process_count()))
    with bars.Progress(
        *columns, console=console, transient=True, disable=not (show and console.is_terminal)
    ) as bar:
        task, start, done = bar.add_task("", total=share, rate=0.0), time.perf_counter(), 0
        for result in results:
            done += len(result.images)
            bar.update(task, completed=done, rate=done / (time.perf_counter() - start))
            yield result


def draw(sample: dict, prediction: np.ndarray, spec) -> np.ndarray:
    """The panel [image | truth | prediction] of one sample, RGB uint8."""
    return visualize.panel(
        visualize.to_rgb(sample["image"]), sample["label"], prediction, spec.palette, spec.classes
    )


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """The int64 sum over processes of non-negative int64 counts; the array itself if there is one process."""
    if jax.process_count() == 1:
        return counts
    from jax.experimental import multihost_utils

    # JAX moves int32 here: send 31-bit digits.
    digits = np.stack([counts >> 31, counts & (2**31 - 1)]).astype(np.int32)
    high, low = np.asarray(multihost_utils.process_allgather(digits)).astype(np.int64).sum(0)
    return (high << 31) + low


def evaluation_folder(path: str | Path) -> Path:
    """Where `evaluate_checkpoint` writes: the workdir, or WORKDIR/evaluations/STEP of one step, whose own folder may go."""
    from jaxseg import checkpoint

    workdir, step = checkpoint.find_workdir(expand(path))
    return workdir if step is None else workdir / "evaluations" / step


def evaluate_checkpoint(path: str | Path, config=None, *, pictures: int = 8) -> dict:
    """Evaluate a workdir (its best step) or one step; writes metrics.json and pictures/ (see `evaluation_folder`).

    config: overrides config.dataset and config.eval of the trained run; an empty dataset.root means the run's, if the data
    set is the same. What a workdir's metrics.json says about training stays; `step` there is the one that was measured,
    `evaluated` says on what, and how. Returns the summary.
    """
    from jaxseg import checkpoint  # orbax is slow to import
    from jaxseg.data.pipeline import eval_samples, evaluated

    workdir, folder = checkpoint.find_workdir(expand(path))[0], evaluation_folder(path)
    step = checkpoint.find_step(expand(path))  # once: the best of a run that goes on changes
    model, variables, config = inference.load_model(workdir / "checkpoints" / str(step), config)
    save = partial(visualize.save_picture, folder / "pictures")
    with precision.make_policy(config).matmul_precision():
        summary = evaluate(
            model, variables, config, eval_samples(config), pictures=pictures, save_picture=save
        )
    training = checkpoint.read_training(folder)
    part, run = evaluated(config)[0], config.eval
    how = dict(mode=run.mode, resize=list(run.resize), scales=list(run.scales), flip=run.flip)
    summary |= {
        "step": step,
        "evaluated": part.to_dict() | dict(split=config.dataset.val_split) | how,
    }
    summary |= {"training": training} if training else {}
    if jax.process_index() == 0:
        write_json(folder / "metrics.json", summary)
    return summary
