"""A tiny model and its training step, for tests of training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg import losses, optim, precision
from jaxseg.config.schema import Experiment, from_dict
from jaxseg.models.layers import Layers
from jaxseg.training import state as train_state
from jaxseg.training.build import Components
from jaxseg.training.step import AXIS

CLASSES, SIZE, BATCH = 3, 12, 8
MEAN, STD = (120.0, 115.0, 100.0), (58.0, 57.0, 56.0)


class Tiny(nn.Module):
    """Batch norm, dropout and an auxiliary head: all that a number of devices could disturb."""

    layer: Layers

    @nn.compact
    def __call__(self, images, train=False):
        low = self.layer.conv_norm_act(8, 3, stride=2, name="backbone")(
            images.astype(self.layer.dtype), train=train
        )
        x = self.layer.conv_norm_act(8, 3, name="neck")(low, train=train)
        x, y = (self.layer.dropout(z, train=train) for z in (x, low))
        heads = {
            name: self.layer.conv(CLASSES, 1, use_bias=True, name=name)
            for name in ("decode", "aux_0")
        }
        out = {name: head(z).astype(jnp.float32) for (name, head), z in zip(heads.items(), (x, y))}
        return self.layer.resize(out["decode"], images.shape[1:3]), out


def make_experiment(**changes):
    """An experiment whose model is `Tiny`, not the one that it describes."""
    values = {
        "steps": 20,
        "batch_size": BATCH,
        "model": {"backbone": {}, "neck": {}, "heads": {}, "norm": {}, "num_classes": CLASSES},
        "losses": {
            "decode": {"name": "cross_entropy", "average": "valid"},
            "aux_0": {"name": "cross_entropy", "weight": 0.4},
        },
        "dataset": {"image_mean": MEAN, "image_std": STD, "concat": {}},
        "optimizer": {"learning_rate": 0.05, "weight_decay": 1e-3, "multipliers": {}},
    }
    return from_dict(Experiment, values | changes)


def make_components(experiment, model=None):
    policy = precision.make_policy(experiment.precision, experiment.loss_scale)
    optimizer, schedule = optim.make_optimizer(
        experiment.optimizer, experiment.schedule, experiment.steps
    )
    model = model or Tiny(Layers(axis_name=AXIS, dropout_rate=0.5, dtype=policy.dtype))
    loss = losses.make_loss(experiment, AXIS)
    return Components(experiment, model, loss, optimizer, schedule, policy)


def make_state(components, variables):
    state = train_state.create(variables, components.optimizer, components.policy, seed=1)
    return train_state.to_host(state)


def make_batch(index, devices):
    rng = np.random.default_rng(index)
    label = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE)).astype(np.int32)
    label[: BATCH // 4] = 255  # one device of four has nothing but ignored pixels
    label[:, -2:] = 255
    image = (label[..., None] % CLASSES * 60 + rng.integers(0, 60, (BATCH, SIZE, SIZE, 3))).astype(
        np.uint8
    )
    size = np.tile(np.int32([SIZE - 2, SIZE]), (BATCH, 1))
    batch = {"image": image, "label": label, "size": size}
    return {
        key: value.reshape(devices, BATCH // devices, *value.shape[1:])
        for key, value in batch.items()
    }


TRACES = []


def make_run(experiment, devices):
    """(state, step) of the tiny model on `devices` virtual devices."""
    state, step = _make_run(experiment, devices)
    return train_state.replicate(state, jax.devices()[:devices]), step


@functools.cache
def _make_run(experiment, devices):  # the tests share what is compiled
    components = make_components(experiment)
    variables = components.model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))

    def traced_loss(*arguments):
        TRACES.append((devices, experiment.precision))
        return components.loss(*arguments)

    traced = dataclasses.replace(components, loss=traced_loss)
    return make_state(components, variables), traced.make_step(jax.devices()[:devices])


class Batches:
    """What data.pipeline.train_batches gives, from make_batch."""

    def __init__(self, devices):
        self.position, self._devices = 0, devices

    def __next__(self):
        self.position += 1
        return make_batch(self.position - 1, self._devices)

    def names(self, index):
        return [f"photo_{index}_{i}" for i in range(BATCH)]
