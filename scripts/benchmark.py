"""Time training, inference or the data pipeline.

Prints a JSON line for every precision, and appends these to the list in --json.

  python scripts/benchmark.py --config=configs/quickstart.py --what=train --json=speed.json
  python scripts/benchmark.py --config=configs/quickstart.py --what=data --batch=8

Images are synthetic, except with --what=data. The package jaxseg.benchmark describes the fields.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from jaxseg import benchmark, cli, files
from jaxseg.config.resolve import resolve
from jaxseg.config.schema import Experiment
from jaxseg.validation import check_alone

CONFIG = cli.define_config()
WHAT = flags.DEFINE_enum("what", "train", ["train", "infer", "slide", "data"], "What to time.")
PRECISION = flags.DEFINE_list(
    "precision",
    [""],
    "float32, tf32, bfloat16 or float16, or several of them; default: the config's.",
)
BATCH = flags.DEFINE_integer(
    "batch",
    0,
    "Images per device; default: 2 (train), 1 (infer, slide), the config's (data).",
    lower_bound=0,
)
SIZE = flags.DEFINE_string(
    "size", "", "HxW; default: the config's crop (train), 1024x2048 (infer, slide)."
)
DEVICES = flags.DEFINE_integer("devices", 1, "Number of devices to train on.", lower_bound=1)
WARMUP = flags.DEFINE_integer("warmup", 10, "Untimed runs before the timings.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 30, "Timings; their median is reported.", lower_bound=1)
STEPS = flags.DEFINE_integer(
    "steps", 1, "Runs per timing, one after the other without waiting.", lower_bound=1
)
JSON = flags.DEFINE_string(
    "json", "", "JSON file to append the measurements to; made if it is missing."
)


@flags.validator("size", message="give --size=HxW, for example 512x1024")
def _is_size(text: str) -> bool:
    return not text or bool(re.fullmatch(r"[1-9]\d*x[1-9]\d*", text))


def main(_: list[str]) -> None:
    """Measure every precision; exit with status 1 if one of them fails."""
    if JSON.value:
        files.check_output(JSON.value, "--json", is_file=True)
    timing = benchmark.Timing(WARMUP.value, REPEATS.value, STEPS.value)
    rows = data_rows(timing) if WHAT.value == "data" else model_rows(timing)
    has_failed = False
    for row in rows:
        print(json.dumps(row), flush=True)
        has_failed |= "error" in row
        if JSON.value:
            benchmark.append(JSON.value, [row])
    sys.exit(has_failed)


def model_rows(timing: benchmark.Timing) -> Iterator[dict[str, Any]]:
    """Measure training or inference in each precision; a row with 'error' where JAX fails."""
    experiment = benchmark.without_measurements(resolve_synthetic())
    for name in PRECISION.value:
        try:
            yield benchmark.measure(
                experiment,
                WHAT.value,
                precision_name=name,
                batch=BATCH.value,
                size=tuple(map(int, SIZE.value.split("x"))) if SIZE.value else None,
                devices=DEVICES.value,
                timing=timing,
            )
        except jax.errors.JaxRuntimeError as error:
            # Out of memory in one precision must not lose the others.
            failure = {"config": experiment.name, "what": WHAT.value, "precision": name}
            yield failure | {"error": str(error)[:300]}


def resolve_synthetic() -> Experiment:
    """Resolve the config without its data set, unless only that knows the number of classes."""
    config = check_alone(CONFIG.value)
    if config.model.num_classes is not None:
        spec = benchmark.SyntheticSpec(config.dataset.name, config.model.num_classes)
        return resolve(config, spec)
    # Training and inference are timed without the libraries that read images.
    from jaxseg.experiments import load_experiment  # noqa: PLC0415 - needs cv2, grain

    return load_experiment(config, measured=False)


def data_rows(timing: benchmark.Timing) -> Iterator[dict[str, Any]]:
    """Measure the data pipeline."""
    from jaxseg.benchmark.data import measure_data  # noqa: PLC0415 - needs cv2, grain
    from jaxseg.experiments import open_experiment  # noqa: PLC0415 - needs cv2, grain

    experiment, spec = open_experiment(CONFIG.value)
    yield measure_data(experiment, spec, batch=BATCH.value, timing=timing)


if __name__ == "__main__":
    cli.run_main(main)
