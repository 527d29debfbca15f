"""Timing of repeated runs."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Timing:
    """The number of runs to time.

    Attributes:
        warmup: Runs before the first timing.
        repeats: Number of timings.
        steps: Runs per timing, started one after the other without waiting.
    """

    warmup: int = 10
    repeats: int = 30
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """A function to time.

    Attributes:
        run: The function, which returns arrays to wait for.
        images: Number of images per run.
        facts: Further fields of the row.
        compiled: The compiled program of the function, None if there is none.
        programs: Number of calls of `compiled` per run.
        compile_seconds: Compile time in seconds.
    """

    run: Callable[[], Any]
    images: int
    facts: dict[str, Any]
    compiled: jax.stages.Compiled | None = None
    programs: int = 1
    compile_seconds: float | None = None


def time_runs(run: Callable[[], Any], timing: Timing) -> list[float]:
    """Time a function repeatedly.

    Args:
        run: The function, which returns arrays to wait for.
        timing: Number of runs.

    Returns:
        Seconds per run for each repeat, as means over `timing.steps` runs.
    """
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
    """Return the median, 10th and 90th percentile, minimum and maximum of times in seconds."""
    low, median, high = np.percentile(seconds, (10, 50, 90))
    return {
        "seconds": float(median),
        "seconds_p10": float(low),
        "seconds_p90": float(high),
        "seconds_min": float(min(seconds)),
        "seconds_max": float(max(seconds)),
    }
