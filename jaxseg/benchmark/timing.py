"""Timing of repeated runs."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """How often to run.

    Attributes:
        warmup: Runs before the first timing.
        repeats: Timings.
        steps: Runs in a timing, one after the other without waiting.
    """

    warmup: int = 10
    repeats: int = 30
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        run: Does it once and returns arrays to wait for.
        images: Number of images in a run.
        facts: Further fields of the row.
        compiled: The program of the run, None if there is none.
        programs: Calls of `compiled` in a run.
        compile_seconds: Seconds to compile it.
    """

    run: Callable[[], Any]
    images: int
    facts: dict[str, Any]
    compiled: jax.stages.Compiled | None = None
    programs: int = 1
    compile_seconds: float | None = None


def time_runs(run: Callable[[], Any], timing: Timing) -> list[float]:
    """Return the seconds of a run for each repeat, each the mean over `timing.steps` runs."""
    for _ in range(timing.warmup):
        jax.block_until_ready(run())
    found = []
    for _ in range(timing.repeats):
        start = time.perf_counter()
        for _ in range(timing.steps):
            result = run()
        jax.block_until_ready(result)
        found.append((time.perf_counter() - start) / timing.steps)
    return found


def summarize(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, 10th and 90th percentile, smallest and largest of several times in seconds."""
    low, median, high = np.percentile(seconds, (10, 50, 90))
    return {
        "seconds": float(median),
        "seconds_p10": float(low),
        "seconds_p90": float(high),
        "seconds_min": float(min(seconds)),
        "seconds_max": float(max(seconds)),
    }
