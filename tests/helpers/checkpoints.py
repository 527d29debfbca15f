"""A toy experiment, its training state, and workdirs of it."""

import jax.numpy as jnp
import numpy as np
import optax

from jaxseg import checkpoint, precision
from jaxseg.config.schema import Experiment, from_dict
from jaxseg.replication import replicate
from jaxseg.training import state as train_state

DATASET = {"name": "folder", "classes": ["a", "b"]}
EXPERIMENT = from_dict(
    Experiment,
    {
        "name": "toy",
        "steps": 4,
        "batch_size": 2,
        "model": {
            "backbone": {"name": "resnet", "depth": 10},
            "neck": {"name": ""},
            "heads": {"decode": {"name": "fcn", "channels": 4}},
            "norm": {},
        },
        "losses": {"decode": {"name": "dice"}},
        "dataset": {"name": "folder", "root": "a", "crop_size": (4, 6), "dtype": "uint8"},
    },
)


def make_state(value=0.0, step=0):
    """A replicated training state whose variables are all `value`."""
    variables = {
        "params": {
            "backbone": {"kernel": np.full((2, 3), value, np.float32)},
            "head": {"kernel": np.full((3, 2), value, np.float32)},
        },
        "batch_stats": {"backbone": {"mean": np.full(3, value, np.float32)}},
    }
    optimizer = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(lambda count: 0.1))
    state = train_state.create(variables, optimizer, precision.make_policy("float16"), seed=3)
    return replicate(state.replace(step=jnp.int32(step)))


def save(manager, state, position, miou=None):
    """Save a whole training state."""
    checkpoint.save(
        manager, int(state.step), state.variables, state.optimizer_items, position, miou
    )


def fill(workdir, mious, **options):
    """Write a workdir with checkpoints {step: mIoU or None}; returns the steps that are kept."""
    checkpoint.write_experiment(workdir, EXPERIMENT, DATASET)
    with checkpoint.open_manager(workdir, **options) as manager:
        for step, miou in mious.items():
            save(manager, make_state(step, step), {"batches": step, "seconds": 1.5}, miou)
        checkpoint.write_best(manager)
        return sorted(manager.all_steps())
