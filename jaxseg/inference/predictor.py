"""From images to class scores: one pass or sliding windows, several scales, mirrored copies; and `Predictor`.

The order is the published one: the test resize of the image, the network, its logits resized to the size asked for
(the label's, or the photo's own), then the argmax. With scales or mirrored copies the softmax probabilities of the
resized logits are averaged instead.
"""

import collections
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
from jaxseg.constants import IGNORE
from jaxseg.errors import CheckpointError, ConfigError, NonFiniteError, about
from jaxseg.files import expand, read_text
from jaxseg.inference.sliding import slide
from jaxseg.inference.sliding import window_starts as window_starts
from jaxseg.ops import normalize, resize_bilinear
from jaxseg.weights.finite import check_finite

log = logging.getLogger(__name__)

MAX_PROGRAMS = 64  # compiled shapes kept alive; one more frees them all
OVERFLOW_HINT = (
    "the model computes in float16, which ends at 65504: say --config.precision=float32 or bfloat16"
)


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
    """Settings from config.eval, .dataset (image statistics) and .model; ConfigError names what does not fit."""
    run = config.eval
    if run.mode not in ("whole", "slide"):
        raise ConfigError(
            f"config.eval.mode is {run.mode!r}: choose 'whole' or 'slide'", field="eval.mode"
        )
    crop, stride = (tuple(int(n) for n in value) for value in (run.crop_size, run.stride))
    if run.mode == "slide" and (len(crop) != 2 or len(stride) != 2 or min(crop + stride) < 1):
        field = "eval.stride" if len(crop) == 2 and min(crop) > 0 else "eval.crop_size"
        raise ConfigError(
            f"config.eval.mode 'slide' needs crop_size and stride as (height, width) in pixels, not {crop} and {stride}",
            field=field,
        )  # fmt: skip
    if run.mode == "slide" and any(step > side for step, side in zip(stride, crop)):
        raise ConfigError(
            f"config.eval.stride {stride} is larger than config.eval.crop_size {crop}: pixels between the windows would be "
            "left out", field="eval.stride",
        )  # fmt: skip
    scales = tuple(float(s) for s in run.scales)
    if not scales or min(scales) <= 0:
        raise ConfigError(
            f"config.eval.scales is {scales}: give one or more positive ratios, (1.0,) for none",
            field="eval.scales",
        )
    if run.batch_size < 1:
        raise ConfigError(
            f"config.eval.batch_size is {run.batch_size}: it must be 1 or more",
            field="eval.batch_size",
        )
    mean, std = (
        tuple(float(v) for v in value)
        for value in (config.dataset.image_mean, config.dataset.image_std)
    )
    align, flip = bool(config.model.align_corners), bool(run.flip)
    return Settings(mean, std, align, run.mode, crop, stride, scales, flip, int(run.batch_size))


# --- Whole images -----------------------------------------------------------------------------------------------------


def network(model: Any, settings: Settings, variables, images: jax.Array) -> jax.Array:
    """Logits [B, h, w, K] float32 of raw images [B, h, w, C].

    model: anything with `apply(variables, images, train=False) -> (logits, out)`.
    """
    logits, _ = model.apply(variables, normalize(images, settings.mean, settings.std), train=False)
    return logits.astype(jnp.float32)


def softmax(logits: jax.Array) -> jax.Array:
    """Class probabilities [..., K]; where a logit is not finite all are NaN, which an average keeps (-inf would be 0)."""
    return jax.nn.softmax(jnp.where(jnp.isfinite(logits), logits, jnp.nan))


def classify(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(class ids [..., H, W] int32, how many pixels [...] have a score that is not finite) of scores [..., H, W, K]."""
    broken = ~jnp.isfinite(scores).all(-1)
    return jnp.argmax(scores, -1).astype(jnp.int32), broken.sum((-2, -1), dtype=jnp.int32)


def predict(
    model: Any, settings: Settings, variables, images: Sequence[jax.Array], size: tuple[int, int]
) -> jax.Array:
    """Scores [B, H, W, K] float32 of images, in one pass over the whole image per view.

    images: [B, h, w, C] of any dtype at each of settings.scales (`data.transforms.scaled_views`). size: (H, W) of the
    result. Scores are logits with one view, else mean probabilities, NaN where logits are not finite. Pure: jit it for
    a fixed size.
    """
    total = 0.0
    for _, view in zip(settings.scales, images, strict=True):
        batch = len(view)
        if settings.flip:
            view = jnp.concatenate([view, view[:, :, ::-1]])
        scores = resize_bilinear(
            network(model, settings, variables, view), size, settings.align_corners
        )
        if settings.views == 1:
            return scores
        scores = softmax(scores)
        total += scores[:batch] + scores[batch:, :, ::-1] if settings.flip else scores
    return total / settings.views


# --- Sliding windows --------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("size", "align_corners", "several", "mirrored"))
def _finish(
    logits: jax.Array, *, size, align_corners: bool, several: bool, mirrored: bool
) -> jax.Array:
    scores = resize_bilinear(logits[None], size, align_corners)[0]
    scores = softmax(scores) if several else scores
    return scores[:, ::-1] if mirrored else scores


def predict_slide(
    call: Callable,
    settings: Settings,
    items: Iterable[tuple[Sequence[np.ndarray], tuple[int, int]]],
    devices: int = 1,
) -> Iterator[jax.Array]:
    """Scores [H, W, K] of each item, in order, by sliding windows.

    call: as in `slide`, with windows [devices * settings.batch_size, wh, ww, C]. items: (the image [h, w, C] at each of
    settings.scales, (H, W)). Scores are as in `predict`.
    """
    sizes: collections.deque = collections.deque()

    def views():
        for images, size in items:
            sizes.append(tuple(size))
            for _, view in zip(settings.scales, images, strict=True):
                yield view
                if settings.flip:
                    yield view[:, ::-1]

    total = None
    batch = devices * settings.batch_size
    for i, logits in enumerate(slide(call, views(), settings.crop_size, settings.stride, batch)):
        view, several = i % settings.views, settings.views > 1
        scores = _finish(
            logits,
            size=sizes[0],
            align_corners=settings.align_corners,
            several=several,
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
            log.info(
                "%s: compiling for shape %s (%d in use)",
                what,
                " -> ".join(map(str, key)),
                len(seen),
            )
        return program(variables, *arrays, **static)

    return call


# --- Predictor --------------------------------------------------------------------------------------------------------


class Predictor:
    """A trained model as a function of photos: `segment(image)` -> int32 [H, W] class ids.

    image: uint8 [H, W, 3] RGB (or of the channels and dtype it was trained on) of any size, or a list of such, which
    gives a list. Missing are the masked values of a masked array and those that config.dataset.nodata names; pixels
    without any data become 255. config.eval decides the test resize, the windows, scales and mirrored copies, as in
    evaluation. The first image of a size compiles.

    Every method raises DataError for what is no such image, NonFiniteError where the model's scores are no numbers.

    Attributes for research code: model, variables, config, classes (names), palette (RGB).
    """

    def __init__(
        self, model: Any, variables, config, *, classes: Sequence[str], palette: Sequence[Sequence[int]],
        source: str | Path = "",
    ):  # fmt: skip
        """`source`: where the variables come from, for the WeightsError about those that are not finite."""
        check_finite(variables, str(source))
        self.model, self.config = model, config
        self.classes, self.palette = tuple(classes), tuple(tuple(color) for color in palette)
        self.variables = jax.tree.map(jnp.asarray, variables)
        self._settings = settings = make_settings(config)
        self._matmul_precision = precision.make_policy(config).matmul_precision
        whole = partial(jax.jit, partial(predict, model, settings), static_argnames="size")
        self._whole = logged(whole, "whole image")
        self._network = logged(partial(jax.jit, partial(network, model, settings)), "window")
        self._classify = jax.jit(classify)
        self._softmax = jax.jit(
            lambda scores: (softmax(scores) if settings.views == 1 else scores, classify(scores)[1])
        )

    @classmethod
    def from_checkpoint(cls, path: str | Path, config=None) -> "Predictor":
        """From a workdir (its best step) or one step; `config`, if given, overrides config.dataset and config.eval."""
        path = expand(path)
        model, variables, config = load_model(path, config)
        facts = read_dataset_facts(path)
        return cls(
            model,
            variables,
            config,
            classes=facts["classes"],
            palette=facts["palette"],
            source=path,
        )

    @classmethod
    def from_mmseg(cls, config, weights: str | Path) -> "Predictor":
        """From a config and a checkpoint of MMSegmentation (.pth, or .npz and .safetensors with the same names)."""
        from jaxseg import convert
        from jaxseg.config.resolve import resolve
        from jaxseg.data.catalog import trained_spec
        from jaxseg.models import create_model

        config, weights = resolve(config), expand(weights)
        spec = trained_spec(config.dataset)
        model = create_model(config.model, dtype=precision.make_policy(config).dtype)
        with about(file=weights):
            variables = convert.from_mmseg(
                convert.read_state_dict(weights), model, config.dataset.channels
            )
        return cls(
            model, variables, config, classes=spec.classes, palette=spec.palette, source=weights
        )

    def __call__(self, image: np.ndarray | Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """Class ids int32 [H, W] of an image, 255 where it holds no data; of a list of images, a list."""
        if isinstance(image, list | tuple):
            return _of_each(self, image)
        scores, empty = self._scores(image)
        ids, broken = self._classify(scores)
        self._require_finite(int(broken), ids.size)
        return np.asarray(ids) if empty is None else np.where(empty, np.int32(IGNORE), ids)

    def probabilities(
        self, image: np.ndarray | Sequence[np.ndarray]
    ) -> np.ndarray | list[np.ndarray]:
        """Class probabilities float32 [H, W, K] of an image, 0 where it holds no data; of a list of images, a list."""
        if isinstance(image, list | tuple):
            return _of_each(self.probabilities, image)
        scores, empty = self._scores(image)
        result, broken = self._softmax(scores)
        self._require_finite(int(broken), result.size // result.shape[-1])
        return (
            np.asarray(result)
            if empty is None
            else np.where(empty[..., None], np.float32(0), result)
        )

    def _scores(self, image: np.ndarray) -> tuple[jax.Array, np.ndarray | None]:
        """(scores [H, W, K], where the image holds no data)."""
        from jaxseg.data.augment.transforms import scaled_views
        from jaxseg.data.photos import prepare_image

        pixels, empty = prepare_image(image, self.config.dataset)
        size, views = (
            pixels.shape[:2],
            scaled_views(pixels, self.config.eval.resize, self._settings.scales),
        )
        with self._matmul_precision():
            if self._settings.mode == "whole":
                return self._whole(self.variables, [view[None] for view in views], size=size)[
                    0
                ], empty
            call = partial(self._network, self.variables)
            return next(predict_slide(call, self._settings, [(views, size)])), empty

    def _require_finite(self, broken: int, pixels: int) -> None:
        if broken:
            raise NonFiniteError(
                f"the class scores of {broken} of {pixels} pixels are NaN or infinite",
                hint=OVERFLOW_HINT if self.config.precision == "float16" else "are the image's values like those of training?",
            )  # fmt: skip


def _of_each(function: Callable, images: Sequence[np.ndarray]) -> list:
    results = []
    for i, image in enumerate(images):
        with about(file=f"image[{i}]", field=f"image[{i}]"):
            results.append(function(image))
    return results


def load_model(path: str | Path, config=None) -> tuple[Any, dict, Any]:
    """(model, variables, config) of a workdir's best step or of one step.

    config: overrides config.dataset, config.eval and config.precision.
    """
    from jaxseg import checkpoint
    from jaxseg.config.resolve import resolve
    from jaxseg.models import create_model

    trained, variables = checkpoint.load_variables(path)
    if config is not None:
        trained = resolve(override_data(trained, config), trained.model.num_classes)
    model = create_model(trained.model, dtype=precision.make_policy(trained).dtype)
    return model, variables, trained


def override_data(trained, config):
    """A copy of the trained run's config with `dataset`, `eval` and `precision` from another config, which may say less.

    Without a dataset.root, root and source are those of the run if the data set is the same.
    """
    merged, other = trained.copy_and_resolve_references(), config.copy_and_resolve_references()
    with merged.unlocked(), other.unlocked():
        if other.dataset.name == trained.dataset.name and not other.dataset.get("root", ""):
            other.dataset.root, other.dataset.source = trained.dataset.root, trained.dataset.source
        merged.dataset, merged.eval = other.dataset, other.eval
        merged.precision = other.get("precision", trained.precision)
        # The network knows the images and statistics it was trained with, whatever data it is shown.
        for key in ("channels", "dtype", "image_mean", "image_std", "classes"):
            merged.dataset[key] = trained.dataset.get(key, ())
        merged.dataset.nodata = other.dataset.get("nodata", ()) or trained.dataset.get("nodata", ())
    return merged.unlock()


def read_dataset_facts(path: str | Path) -> dict:
    """dataset.json (classes, palette, ...) of a workdir or of one of its steps; CheckpointError if there is none."""
    path = expand(path).absolute()
    for file in (folder / "dataset.json" for folder in (path, *path.parents[:2])):
        if file.is_file():
            try:
                return json.loads(read_text(file))
            except json.JSONDecodeError as error:
                raise CheckpointError(
                    f"is no JSON ({error})", file=file, hint="restore it, or train or convert anew"
                ) from None
    hint = "give the workdir of a run, or one of its steps"
    raise CheckpointError("there is no dataset.json in it or above it", file=path, hint=hint)
