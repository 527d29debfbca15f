"""The compiled functions of evaluation, shared by all evaluations of one model."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from jaxseg.inference.programs import BoundedJitCache
from jaxseg.inference.settings import TestSettings
from jaxseg.inference.whole import Model, classify, forward, predict
from jaxseg.metrics import confusion_matrix

Devices = tuple[jax.Device, ...]

# Keyed by the id of a model, since Flax modules with unhashable fields cannot be keys. An entry is
# removed when its model is garbage-collected.
_programs: dict[int, dict[tuple[TestSettings, Devices], BoundedJitCache]] = {}


def compiled_program(model: Model, settings: TestSettings, devices: Devices) -> BoundedJitCache:
    """Return the function that runs on every device, compiled once for each input shape.

    All calls with the same arguments share it as long as the model object exists, so the
    evaluations of a training run compile only once. It does not keep the model alive. For a model
    without weak references (Flax modules have them) every call compiles.

    Args:
        model: The model.
        settings: Test-time settings.
        devices: The local devices to use.

    Returns:
        For whole images: (variables, (images [D, B, h, w, C] at each scale, labels [D, B, H, W]))
        to what `count_pixels` returns, [D, B, ...]. For sliding windows: (variables, windows [D, B,
        wh, ww, C]) to logits [D, B, wh, ww, K].
    """
    try:
        weak = weakref.ref(model)
    except TypeError:
        return _compile(lambda: model, settings, devices)
    if id(model) not in _programs:
        weakref.finalize(model, _programs.pop, id(model)).atexit = False
        _programs[id(model)] = {}
    programs = _programs[id(model)]
    key = (settings, devices)
    if key not in programs:
        programs[key] = _compile(partial(_alive, weak), settings, devices)
    return programs[key]


def _alive(model: "weakref.ref[Model]") -> Model:
    found = model()
    assert found is not None, "a program was called after its model was gone"
    return found


def _compile(
    find_model: Callable[[], Model], settings: TestSettings, devices: Devices
) -> BoundedJitCache:
    whole = settings.mode == "whole"
    function = partial(_count_whole if whole else _forward, find_model, settings)
    # It has no collectives, so that processes may call it different numbers of times.
    make = partial(jax.pmap, function, in_axes=(None, 0), devices=devices)
    return BoundedJitCache(make, "whole images" if whole else "windows")


def _forward(
    find_model: Callable[[], Model], settings: TestSettings, variables: Any, windows: jax.Array
) -> jax.Array:
    return forward(find_model(), settings, variables, windows)


def _count_whole(
    find_model: Callable[[], Model],
    settings: TestSettings,
    variables: Any,
    batch: tuple[Sequence[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    images, labels = batch
    _, height, width = labels.shape
    scores = predict(find_model(), settings, variables, images, (height, width))
    return count_pixels(scores, labels)


@jax.jit
def count_pixels(scores: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Classify and count pixels.

    Args:
        scores: float32 [..., H, W, K].
        label: int [..., H, W], 255 for ignored pixels.

    Returns:
        The confusion matrix int32 [K, K] over all images, class ids int32 [..., H, W], and for each
        image the number of pixels with a score that is not finite, int32 [...].
    """
    ids, nonfinite = classify(scores)
    return confusion_matrix(ids, label, scores.shape[-1]), ids, nonfinite
