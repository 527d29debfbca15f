"""From images to class scores: one pass or sliding windows, several scales, mirrored copies; and `Predictor`.

The order is the published one: the test resize of the image, the network, its logits resized to the size asked for
(the label's, or the photo's own), then the argmax. With scales or mirrored copies the softmax probabilities of the
resized logits are averaged instead.
"""

import collections
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import precision
from jaxseg.errors import CheckpointError, ConfigError, DataError
from jaxseg.models.layers import normalize, resize_bilinear

log = logging.getLogger(__name__)

MAX_PROGRAMS = 64  # compiled shapes kept alive; one more frees them all


class Settings(NamedTuple):
    """How to run a model on images: `make_settings` unpacks it from a config."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    align_corners: bool = False
    mode: str = "whole"
    crop_size: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (0, 0)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 1  # images, or windows, in one call of the network on one device

    @property
    def views(self) -> int:
        """How many passes are averaged; with one, scores are logits, with more they are probabilities."""
        return len(self.scales) * (2 if self.flip else 1)


def make_settings(config) -> Settings:
    """Settings from config.eval, .dataset (image statistics) and .model; ValueError names what does not fit."""
    run = config.eval
    if run.mode not in ("whole", "slide"):
        raise ConfigError(f"config.eval.mode is {run.mode!r}: choose 'whole' or 'slide'")
    crop, stride = (tuple(int(n) for n in value) for value in (run.crop_size, run.stride))
    if run.mode == "slide" and (len(crop) != 2 or len(stride) != 2 or min(crop + stride) < 1):
        raise ConfigError(
            f"config.eval.mode 'slide' needs crop_size and stride as (height, width) in pixels, not {crop} and {stride}"
        )
    if run.mode == "slide" and any(step > side for step, side in zip(stride, crop)):
        raise ConfigError(f"config.eval.stride {stride} is larger than config.eval.crop_size {crop}: pixels between the windows would be left out")
    scales = tuple(float(s) for s in run.scales)
    if not scales or min(scales) <= 0:
        raise ConfigError(f"config.eval.scales is {scales}: give one or more positive ratios, (1.0,) for none")
    if run.batch_size < 1:
        raise ConfigError(f"config.eval.batch_size is {run.batch_size}: it must be 1 or more")
    mean, std = (tuple(float(v) for v in value) for value in (config.dataset.image_mean, config.dataset.image_std))
    align, flip = bool(config.model.align_corners), bool(run.flip)
    return Settings(mean, std, align, run.mode, crop, stride, scales, flip, int(run.batch_size))


# --- Whole images -----------------------------------------------------------------------------------------------------


def network(model: Any, settings: Settings, variables, images: jax.Array) -> jax.Array:
    """Logits [B, h, w, K] float32 of raw images [B, h, w, C] uint8.

    model: anything with `apply(variables, images, train=False) -> (logits, out)`.
    """
    logits, _ = model.apply(variables, normalize(images, settings.mean, settings.std), train=False)
    return logits.astype(jnp.float32)


def scaled(images: jax.Array, ratio: float) -> jax.Array:
    """Images [B, h, w, C] uint8 resized by a ratio, rounded to uint8 as an image file would be."""
    if ratio == 1:
        return images
    size = [int(n * ratio + 0.5) for n in images.shape[1:3]]
    return jnp.round(resize_bilinear(images.astype(jnp.float32), size)).astype(jnp.uint8)


def predict(model: Any, settings: Settings, variables, images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Scores [B, H, W, K] float32 of images [B, h, w, C] uint8, in one pass over the whole image per view.

    size: (H, W) of the result. Scores are logits with one view, else mean probabilities. Pure: jit it for a fixed size.
    """
    batch, total = len(images), 0.0
    for ratio in settings.scales:
        view = scaled(images, ratio)
        if settings.flip:
            view = jnp.concatenate([view, view[:, :, ::-1]])
        scores = resize_bilinear(network(model, settings, variables, view), size, settings.align_corners)
        if settings.views == 1:
            return scores
        scores = jax.nn.softmax(scores)
        total += scores[:batch] + scores[batch:, :, ::-1] if settings.flip else scores
    return total / settings.views


# --- Sliding windows --------------------------------------------------------------------------------------------------


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows start along one axis: every stride, the last shifted back inside; [0] if the image is smaller."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - crop), 0) for i in range(count)]


class _Window(NamedTuple):
    pixels: np.ndarray  # [wh, ww, C]
    corner: tuple[int, int]
    size: tuple[int, int]  # of its image
    first: bool
    last: bool


def _windows(images: Iterable[np.ndarray], crop: Sequence[int], stride: Sequence[int]) -> Iterator[_Window]:
    for image in images:
        size = image.shape[:2]
        corners = list(itertools.product(*map(window_starts, size, crop, stride)))
        for i, (y, x) in enumerate(corners):
            pixels = image[y : y + crop[0], x : x + crop[1]]
            yield _Window(pixels, (y, x), size, i == 0, i == len(corners) - 1)


def _chunks(windows: Iterable[_Window], batch: int) -> Iterator[list[_Window]]:
    """Runs of at most `batch` windows of one shape."""
    for _, run in itertools.groupby(windows, key=lambda window: window.pixels.shape):
        while chunk := list(itertools.islice(run, batch)):
            yield chunk


def _coverage(length: int, crop: int, stride: int) -> np.ndarray:
    """How many windows see each position along one axis: [length] float32."""
    count = np.zeros(length, np.float32)
    for start in window_starts(length, crop, stride):
        count[start : start + crop] += 1
    return count


@partial(jax.jit, donate_argnums=0)
def _add(total: jax.Array, logits: jax.Array, n: int, y: int, x: int) -> jax.Array:
    """total [h, w, K] plus logits[n] [wh, ww, K] at (y, x); indices are traced, so one compilation per shape."""
    window = jax.lax.dynamic_index_in_dim(logits, n, keepdims=False)
    here = jax.lax.dynamic_slice(total, (y, x, 0), window.shape)
    return jax.lax.dynamic_update_slice(total, here + window, (y, x, 0))


@partial(jax.jit, donate_argnums=0)
def _divide(total: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return total / (rows[:, None] * columns[None, :])[..., None]


def slide(
    call: Callable, images: Iterable[np.ndarray], crop_size: Sequence[int], stride: Sequence[int], batch: int = 1
) -> Iterator[jax.Array]:
    """Logits [h, w, K] of each image [h, w, C], in order: the mean over the windows that see a pixel.

    call: windows [batch, wh, ww, C] numpy -> logits [batch, wh, ww, K]. Its shapes depend on the crop alone (or on the
    image where that is smaller), never on the image sizes or the number of windows: windows of consecutive images share
    a call, and the last call repeats a window to fill up. One image's sum is held at a time.
    """
    total = None
    for chunk in _chunks(_windows(images, crop_size, stride), batch):
        pixels = [window.pixels for window in chunk]
        logits = call(np.stack(pixels + pixels[-1:] * (batch - len(chunk))))
        for n, window in enumerate(chunk):
            if window.first:
                total = jnp.zeros((*window.size, logits.shape[-1]), jnp.float32)
            total = _add(total, logits, n, *window.corner)
            if window.last:
                yield _divide(total, *map(_coverage, window.size, crop_size, stride))


_scaled = jax.jit(scaled, static_argnums=1)


def _views(image: np.ndarray, settings: Settings) -> Iterator[np.ndarray]:
    for ratio in settings.scales:
        view = image if ratio == 1 else np.asarray(_scaled(image[None], ratio)[0])
        yield view
        if settings.flip:
            yield view[:, ::-1]


@partial(jax.jit, static_argnames=("size", "align_corners", "softmax", "mirrored"))
def _finish(logits: jax.Array, *, size, align_corners: bool, softmax: bool, mirrored: bool) -> jax.Array:
    scores = resize_bilinear(logits[None], size, align_corners)[0]
    scores = jax.nn.softmax(scores) if softmax else scores
    return scores[:, ::-1] if mirrored else scores


def predict_slide(
    call: Callable, settings: Settings, items: Iterable[tuple[np.ndarray, tuple[int, int]]], devices: int = 1
) -> Iterator[jax.Array]:
    """Scores [H, W, K] of each item (image [h, w, C] uint8, (H, W)), in order, by sliding windows.

    call: as in `slide`, with windows [devices * settings.batch_size, wh, ww, C]. Scores are as in `predict`.
    """
    sizes: collections.deque = collections.deque()

    def views():
        for image, size in items:
            sizes.append(tuple(size))
            yield from _views(image, settings)

    total = None
    batch = devices * settings.batch_size
    for i, logits in enumerate(slide(call, views(), settings.crop_size, settings.stride, batch)):
        view, several = i % settings.views, settings.views > 1
        scores = _finish(
            logits,
            size=sizes[0],
            align_corners=settings.align_corners,
            softmax=several,
            mirrored=settings.flip and view % 2 == 1,
        )
        total = scores if view == 0 else total + scores
        if view == settings.views - 1:
            sizes.popleft()
            yield total / settings.views if several else total


# --- Programs ---------------------------------------------------------------------------------------------------------


def logged(make: Callable[[], Callable], what: str) -> Callable:
    """The compiled function that `make` gives, saying which shapes compile and keeping at most MAX_PROGRAMS of them.

    Whole images compile once per image size. Padding to fewer sizes would change the scores of every model that pools
    globally, so sizes stay exact; sliding windows have one size.
    """
    program, seen = make(), set()

    def call(variables, *arrays, **static):
        nonlocal program
        key = (*(array.shape for array in jax.tree.leaves(arrays)), *static.values())
        if key not in seen:
            if len(seen) >= MAX_PROGRAMS:
                program = make()
                seen.clear()
            seen.add(key)
            log.info("%s: compiling for shape %s (%d in use)", what, " -> ".join(map(str, key)), len(seen))
        return program(variables, *arrays, **static)

    return call


# --- Predictor --------------------------------------------------------------------------------------------------------


class Predictor:
    """A trained model as a function of photos: `segment(image)` -> int32 [H, W] class ids.

    image: uint8 [H, W, 3] RGB (or of the channels and dtype it was trained on) of any size, or a list of such, which gives a list. config.eval decides the test resize,
    the windows, scales and mirrored copies, as in evaluation. The first image of a size compiles.
    Attributes for research code: model, variables, config, classes (names), palette (RGB).
    """

    def __init__(self, model: Any, variables, config, *, classes: Sequence[str], palette: Sequence[Sequence[int]]):
        self.model, self.config = model, config
        self.classes, self.palette = tuple(classes), tuple(tuple(color) for color in palette)
        self.variables = jax.tree.map(jnp.asarray, variables)
        self._settings = settings = make_settings(config)
        self._matmul_precision = precision.make_policy(config).matmul_precision
        whole = partial(jax.jit, partial(predict, model, settings), static_argnames="size")
        self._whole = logged(whole, "whole image")
        self._network = logged(partial(jax.jit, partial(network, model, settings)), "window")
        self._argmax = jax.jit(lambda scores: jnp.argmax(scores, -1).astype(jnp.int32))

    @classmethod
    def from_checkpoint(cls, path: str | Path, config=None) -> "Predictor":
        """From a workdir (its best step) or one step; `config`, if given, overrides config.dataset and config.eval."""
        model, variables, config = load_model(path, config)
        facts = read_dataset_facts(path)
        return cls(model, variables, config, classes=facts["classes"], palette=facts["palette"])

    @classmethod
    def from_mmseg(cls, config, weights: str | Path) -> "Predictor":
        """From a config and a checkpoint of MMSegmentation (.pth, or .npz and .safetensors with the same names)."""
        from jaxseg import convert
        from jaxseg.config import resolve
        from jaxseg.data.datasets import trained_spec
        from jaxseg.models import create_model

        config = resolve(config)
        spec = trained_spec(config.dataset)
        model = create_model(config.model, dtype=precision.make_policy(config).dtype)
        variables = convert.from_mmseg(convert.read_state_dict(weights), model)
        return cls(model, variables, config, classes=spec.classes, palette=spec.palette)

    def __call__(self, image: np.ndarray | Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        if isinstance(image, list | tuple):
            return [self(one) for one in image]
        return np.asarray(self._argmax(self._scores(image)))

    def probabilities(self, image: np.ndarray | Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """Class probabilities [H, W, K] float32 of an image uint8 [H, W, C]; a list gives a list."""
        if isinstance(image, list | tuple):
            return [self.probabilities(one) for one in image]
        scores = self._scores(image)
        return np.asarray(jax.nn.softmax(scores) if self._settings.views == 1 else scores)

    def _scores(self, image: np.ndarray) -> jax.Array:
        from jaxseg.data.transforms import resize_image

        check_image(image, len(self._settings.mean), self.config.dataset.dtype)
        size, resized = image.shape[:2], resize_image(image, self.config.eval.resize)
        with self._matmul_precision():
            if self._settings.mode == "whole":
                return self._whole(self.variables, resized[None], size=size)[0]
            call = partial(self._network, self.variables)
            return next(predict_slide(call, self._settings, [(resized, size)]))


def check_image(image: np.ndarray, channels: int, expected: str = "uint8") -> None:
    """TypeError or ValueError unless image is [H, W, channels] with pixels and of the dtype the model was trained on."""
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    what, colors = f"{expected} [H, W, {channels}]", " RGB" if channels == 3 else ""
    if shape is None or dtype is None:
        raise DataError(f"an image must be a numpy array {what}{colors}, not {type(image).__name__}")
    if dtype != np.dtype(expected):
        values = " with values 0..255" if expected == "uint8" else ", as those the model was trained on"
        raise DataError(f"an image must be {expected}{values}, not {dtype} (shape {shape}); do not normalise it")
    if len(shape) == 4:
        raise DataError(f"one image is [H, W, {channels}], not {shape}: pass several as a list")
    if len(shape) != 3 or shape[2] != channels or not min(shape):
        raise DataError(f"an image must have the shape [H, W, {channels}]{colors and ' (RGB)'}, not {shape}")


def load_model(path: str | Path, config=None) -> tuple[Any, dict, Any]:
    """(model, variables, config) of a workdir's best step or of one step, in the precision it was trained in.

    config: overrides config.dataset and config.eval.
    """
    from jaxseg import checkpoint
    from jaxseg.config import resolve
    from jaxseg.models import create_model

    trained, variables = checkpoint.load_variables(path)
    model = create_model(trained.model, dtype=precision.make_policy(trained).dtype)
    if config is None:
        return model, variables, trained
    return model, variables, resolve(override_data(trained, config), trained.model.num_classes)


def override_data(trained, config):
    """A copy of the trained run's config with `dataset` and `eval` from another config, which may say less.

    Without a dataset.root, root and source are those of the run if the data set is the same.
    """
    merged, other = trained.copy_and_resolve_references(), config.copy_and_resolve_references()
    with merged.unlocked(), other.unlocked():
        if other.dataset.name == trained.dataset.name and not other.dataset.get("root", ""):
            other.dataset.root, other.dataset.source = trained.dataset.root, trained.dataset.source
        merged.dataset, merged.eval = other.dataset, other.eval
        # The network knows the images and statistics it was trained with, whatever data it is shown.
        for key in ("channels", "dtype", "image_mean", "image_std", "classes"):
            merged.dataset[key] = trained.dataset.get(key, ())
    return merged.unlock()


def read_dataset_facts(path: str | Path) -> dict:
    """dataset.json (classes, palette, ...) of a workdir or of one of its steps; ValueError if there is none."""
    path = Path(path).absolute()
    for folder in (path, *path.parents[:2]):
        if (folder / "dataset.json").is_file():
            return json.loads((folder / "dataset.json").read_text())
    raise CheckpointError(f"no dataset.json in {path} or above it: give the workdir of a run, or one of its steps")
