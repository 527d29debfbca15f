"""Throughput of the data pipeline, which needs the `train` extra."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg.benchmark.rows import conditions
from jaxseg.benchmark.timing import Timing, summarize, time_runs
from jaxseg.config.schema import Experiment
from jaxseg.data import pipeline
from jaxseg.data.spec import DatasetSpec

DEFAULT_TIMING = Timing()


def measure_data(
    experiment: Experiment,
    spec: DatasetSpec,
    *,
    batch: int = 0,
    timing: Timing = DEFAULT_TIMING,
) -> dict[str, Any]:
    """Time the loading of augmented training crops.

    The speed is the mean over all batches, not their median, since worker processes deliver in
    bursts.

    Args:
        experiment: Provides data set and augmentation.
        spec: The spec of the data set.
        batch: Images per batch; 0 for the experiment's batch size.
        timing: Number of batches to load.

    Returns:
        Measurements and conditions, JSON values by name. `resident_mb` is the memory of this
        process after the warm-up, half-way and at the end, to detect leaks.
    """
    dataset, batch = experiment.dataset, batch or experiment.batch_size
    batches = pipeline.train_batches(
        dataset, spec, batch_size=batch, seed=experiment.seed, devices=1
    )
    with contextlib.closing(batches):
        for _ in range(timing.warmup):
            next(batches)
        resident = [_resident_mb()]

        def run() -> None:
            next(batches)
            resident.append(_resident_mb())

        used = time.process_time()
        seconds = time_runs(run, dataclasses.replace(timing, warmup=0))
        used = (time.process_time() - used) / (batch * timing.repeats * timing.steps)
    mean = float(np.mean(seconds)) / batch
    return {
        "library": "jaxseg",
        "jax": jax.__version__,
        "config": experiment.name,
        "what": "data",
        "batch": batch,
        "size": list(dataset.crop_size),
        "dataset": dataset.name,
        "workers": dataset.num_workers,
        **summarize(seconds),
        "images_per_second": 1 / mean,
        "ms_per_image": 1000 * mean,
        # The CPU time of this process does not include worker processes.
        "cpu_ms_per_image": None if dataset.num_workers else 1000 * used,
        "resident_mb": [resident[0], resident[len(resident) // 2], resident[-1]],
        **conditions(timing),
    }


def _resident_mb() -> float:
    """Return the memory of this process in MB; 0 on systems without /proc."""
    file = Path("/proc/self/statm")
    if not file.exists():
        return 0.0
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
