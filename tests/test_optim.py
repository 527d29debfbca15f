"""Optimiser steps equal PyTorch's, schedules MMEngine's (both stored); rules for parameters."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import optim
from jaxseg.config.schema import OptimizerConfig, ScheduleConfig, from_dict
from jaxseg.errors import ConfigError

# Made by PyTorch 2.13: initial tensors p/*, four gradients g/*, and the parameters after each of
# four steps.
REFERENCE = np.load(Path(__file__).parent / "data" / "optim_reference.npz")
NAMES = ("a", "b")


def make_optimizer(optimizer=(), **schedule):
    options = dict(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.05)
    return optim.make_optimizer(
        from_dict(OptimizerConfig, options | dict(optimizer)),
        ScheduleConfig(**dict(name="constant") | schedule),
        steps=100,
    )


MULTIPLIERS = {
    "head": {"pattern": "^a$", "learning_rate": 0.1},
    "bias": {"pattern": "b", "weight_decay": 0.0},
}


@pytest.mark.parametrize(
    "case, optimizer",
    [
        ("sgd", {}),
        ("adam", {"name": "adam"}),
        ("adamw", {"name": "adamw"}),
        ("clip", {"clip_norm": 0.5}),
        ("multipliers", {"name": "adamw", "multipliers": MULTIPLIERS}),
    ],
)
def test_steps_equal_pytorch(case, optimizer):
    transformation, _ = make_optimizer(optimizer)
    params = {name: jnp.asarray(REFERENCE[f"p/{name}"]) for name in NAMES}
    state = transformation.init(params)
    for step in range(4):
        gradients = {name: jnp.asarray(REFERENCE[f"g/{name}"][step]) for name in NAMES}
        updates, state = transformation.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name in NAMES:
            # PyTorch clips to norm / (norm + 1e-6), hence not closer
            np.testing.assert_allclose(
                params[name], REFERENCE[f"{case}/{name}"][step], rtol=3e-6, atol=2e-6
            )


# Learning rates of MMEngine 0.10.7's schedulers, step by step.
POLY, COSINE = {"name": "poly", "end_value": 1e-4}, {"name": "cosine", "end_value": 1e-4}
CURVES = {
    "poly": (
        POLY, 0.01, 10,
        [0.01, 0.009004262, 0.007995964, 0.006973106, 0.005932973, 0.004871676, 0.0037832065,
         0.0026570777, 0.001470304, 0.0001, 0.0001, 0.0001],
    ),
    "poly after a warm-up": (
        POLY | {"warmup_steps": 4, "warmup_factor": 0.1}, 0.01, 12,
        [0.001, 0.004, 0.007, 0.01, 0.01, 0.0087175356, 0.0074134107, 0.0060827513, 0.004718023,
         0.003306077, 0.0018180941, 0.0001],
    ),
    "step after a warm-up": (
        {"name": "step", "boundaries": (6, 10), "warmup_steps": 4, "warmup_factor": 0.001},
        5e-4, 20,
        [5e-7, 0.000167, 0.0003335, *[5e-4] * 7, *[5e-5] * 4, 5e-6, 5e-6],
    ),
    "cosine after a warm-up": (
        COSINE | {"warmup_steps": 3, "warmup_factor": 0.1}, 0.01, 12,
        [0.001, 0.0055, 0.01, 0.01, 0.0097014785, 0.00884192, 0.007525, 0.0059095585, 0.0041904415,
         0.002575, 0.0012580800, 0.0003985215],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CURVES)
def test_schedules_equal_mmengine(case):
    schedule, rate, steps, expected = CURVES[case]
    curve = optim.make_schedule(ScheduleConfig(**schedule), rate, steps)
    np.testing.assert_allclose([curve(step) for step in range(len(expected))], expected, rtol=1e-5)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedules_stay_finite_when_compiled(name):
    for steps in (1, 2, 20, 1000):
        curve = optim.make_schedule(ScheduleConfig(name=name), 0.01, steps)
        rates = jax.jit(jax.vmap(curve))(jnp.arange(steps + 2))
        assert np.all((rates > 0) & (rates <= 0.01)), (steps, rates)


def test_a_pattern_that_matches_nothing_is_an_error():
    rules = {"typo": {"pattern": "bakbone", "learning_rate": 0.1}}
    transformation, _ = make_optimizer({"multipliers": rules})
    with pytest.raises(ConfigError) as error:
        transformation.init({"backbone": {"kernel": jnp.zeros(3)}})
    assert error.value.field == "optimizer.multipliers.typo.pattern"
    assert "backbone/kernel" in error.value.hint


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError) as error:
        make_optimizer({"name": "sdg"})
    assert error.value.field == "optimizer.name"
    with pytest.raises(ConfigError) as error:
        make_optimizer(name="polly")
    assert error.value.field == "schedule.name"
