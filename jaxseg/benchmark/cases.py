"""The cases that `measure` times on synthetic images: training, whole images, sliding windows."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg import losses, optim, precision
from jaxseg.benchmark.timing import Case
from jaxseg.config.resolve import has_auto_weights
from jaxseg.config.schema import Experiment
from jaxseg.constants import IGNORE
from jaxseg.inference.settings import make_settings
from jaxseg.inference.slide import predict_slide, window_starts
from jaxseg.inference.whole import forward, predict
from jaxseg.models import create_model, init_variables
from jaxseg.training import state as train_state
from jaxseg.training.build import Components
from jaxseg.training.step import AXIS

WINDOW, STRIDE = (769, 769), (513, 513)  # in pixels, if the experiment evaluates whole images
IGNORED = 0.05  # share of ignored pixels in synthetic labels


@dataclasses.dataclass(frozen=True)
class SyntheticSpec:
    """A data set with numbered classes, for `config.resolve.resolve`.

    Attributes:
        name: Name of the data set.
        num_classes: Number of classes.
    """

    name: str
    num_classes: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names: '0', '1', ..."""
        return tuple(map(str, range(self.num_classes)))


def without_measurements(experiment: Experiment) -> Experiment:
    """Fill in neutral values for fields that would otherwise be measured on the data.

    Args:
        experiment: An experiment that is not measured.

    Returns:
        The experiment with a mean of 0, a standard deviation of 1 and equal class weights, where
        its config leaves them open.
    """
    data, count = experiment.dataset, experiment.model.num_classes
    if not data.image_mean:
        zeros, ones = (0.0,) * data.channels, (1.0,) * data.channels
        data = dataclasses.replace(data, image_mean=zeros, image_std=ones)
    losses_by_label = {
        label: dataclasses.replace(
            loss, options=FrozenDict({**loss.options, "class_weight": (1.0,) * (count or 0)})
        )
        if has_auto_weights(loss.options)
        else loss
        for label, loss in experiment.losses.items()
    }
    return dataclasses.replace(experiment, dataset=data, losses=FrozenDict(losses_by_label))


def train_case(
    experiment: Experiment, batch: int, size: tuple[int, int], devices: Sequence[jax.Device]
) -> Case:
    """Prepare the training step: forward and backward pass, losses, optimiser.

    Args:
        experiment: Provides model, losses and optimiser.
        batch: Number of images per device.
        size: (height, width) of a crop in pixels.
        devices: The devices to train on.

    Returns:
        The case, compiled.
    """
    components = _components(experiment)
    channels, seed = experiment.dataset.channels, experiment.seed
    variables = init_variables(components.model, seed, (1, *size, channels))
    state = train_state.create(variables, components.optimizer, components.policy, seed)
    state = train_state.replicate(state, list(devices))
    arrays = jax.device_put(
        _batch(experiment, (len(devices), batch, *size)),
        NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS)),
    )
    start = time.perf_counter()
    compiled = components.make_step(devices).lower(state, arrays).compile()
    seconds = time.perf_counter() - start

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, arrays)
        return metrics

    images = batch * len(devices)
    facts = {
        "batch": images,
        "size": list(size),
        "devices": len(devices),
        "optimizer": experiment.optimizer.name,
    }
    return Case(run, images, facts, compiled, compile_seconds=seconds)


def _components(experiment: Experiment) -> Components:
    """Build the components of the step, without frozen statistics."""
    policy = precision.make_policy(experiment.precision, experiment.loss_scale)
    optimizer, schedule = optim.make_optimizer(
        experiment.optimizer, experiment.schedule, experiment.steps
    )
    model = create_model(experiment.model, dtype=policy.dtype, axis_name=AXIS)
    loss = losses.make_loss(experiment, axis_name=AXIS)
    return Components(experiment, model, loss, optimizer, schedule, policy)


def _batch(experiment: Experiment, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Make a random batch of `shape` [D, B, H, W]."""
    rng = np.random.default_rng(experiment.seed)
    label = rng.integers(0, experiment.model.num_classes, shape, np.int32)
    label[rng.random(shape) < IGNORED] = IGNORE
    image = _photos(rng, (*shape, experiment.dataset.channels))
    size = np.broadcast_to(np.asarray(shape[2:], np.int32), (*shape[:2], 2))
    return {"image": image, "label": label, "size": size}


def infer_case(experiment: Experiment, batch: int, size: tuple[int, int]) -> Case:
    """Prepare inference of whole images on one device.

    It covers normalisation, the model, resizing the logits and the argmax.

    Args:
        experiment: Provides the model.
        batch: Number of images per run.
        size: (height, width) of an image in pixels.

    Returns:
        The case, compiled.
    """
    settings = make_settings(experiment)._replace(mode="whole", scales=(1.0,), flip=False)
    model, variables = _inference_model(experiment, size)
    rng = np.random.default_rng(experiment.seed)
    images = jax.device_put(_photos(rng, (batch, *size, experiment.dataset.channels)))

    @jax.jit
    def classify(variables: Any, images: jax.Array) -> jax.Array:
        return jnp.argmax(predict(model, settings, variables, (images,), size), -1)

    compiled, seconds = _compile(experiment, classify, variables, images)
    facts = {"batch": batch, "size": list(size)}
    run = functools.partial(compiled, variables, images)
    return Case(run, batch, facts, compiled, compile_seconds=seconds)


def slide_case(experiment: Experiment, batch: int, size: tuple[int, int]) -> Case:
    """Prepare inference with sliding windows on one device, from images on the host to class ids.

    The windows are the experiment's, or WINDOW and STRIDE if it evaluates whole images;
    `eval.batch_size` of them share a forward pass.

    Args:
        experiment: Provides the model and the windows.
        batch: Number of images per run, one after the other.
        size: (height, width) of an image in pixels.

    Returns:
        The case, compiled.
    """
    settings = make_settings(experiment)
    if settings.mode != "slide":
        settings = settings._replace(mode="slide", crop_size=WINDOW, stride=STRIDE)
    settings = settings._replace(scales=(1.0,), flip=False)
    model, variables = _inference_model(experiment, settings.crop_size)
    rng = np.random.default_rng(experiment.seed)
    images = _photos(rng, (batch, *size, experiment.dataset.channels))
    window = [min(pair) for pair in zip(size, settings.crop_size)]
    windows = jax.ShapeDtypeStruct((settings.batch_size, *window, images.shape[-1]), np.uint8)
    jitted = jax.jit(functools.partial(forward, model, settings))
    compiled, seconds = _compile(experiment, jitted, variables, windows)
    argmax = jax.jit(lambda scores: jnp.argmax(scores, -1))
    call = functools.partial(compiled, variables)

    def run() -> list[jax.Array]:
        items = [((image,), size) for image in images]
        return [argmax(scores) for scores in predict_slide(call, settings, items)]

    sides = zip(size, settings.crop_size, settings.stride)
    count = batch * int(np.prod([len(window_starts(*side)) for side in sides]))
    facts = {
        "batch": batch,
        "size": list(size),
        "window": window,
        "stride": list(settings.stride),
        "windows_at_once": settings.batch_size,
    }
    programs = -(-count // settings.batch_size)
    return Case(run, batch, facts, compiled, programs=programs, compile_seconds=seconds)


def _photos(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


def _inference_model(experiment: Experiment, size: tuple[int, int]) -> tuple[nn.Module, Any]:
    """Return the model for inference, and random variables for it on the default device."""
    policy = precision.make_policy(experiment.precision)
    model = create_model(experiment.model, dtype=policy.dtype)
    shape = (1, *size, experiment.dataset.channels)
    return model, jax.device_put(init_variables(model, experiment.seed, shape))


def _compile(
    experiment: Experiment, function: Any, *arguments: Any
) -> tuple[jax.stages.Compiled, float]:
    """Compile a jitted function; return the program and the compile time in seconds."""
    start = time.perf_counter()
    with precision.make_policy(experiment.precision).matmul_precision():
        compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start
