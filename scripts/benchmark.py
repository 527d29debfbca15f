"""Time training, inference or the data pipeline; prints a JSON line for every precision and adds them to the list in --json.

  python scripts/benchmark.py --config=configs/pspnet.py:r101-d8_512x1024_40k_cityscapes --what=train --precision=float32,bfloat16 --json=speed.json
  python scripts/benchmark.py --config=configs/quickstart.py --what=data --config.dataset.num_workers=2

Synthetic images, but for --what=data. Fields are explained in jaxseg/benchmark.py.
"""

import json
import re
import sys

import jax
from absl import flags

from jaxseg import cli, files

CONFIG = cli.define_config()
WHAT = flags.DEFINE_enum("what", "train", ["train", "infer", "slide", "data"], "What to time.")
PRECISION = flags.DEFINE_list(
    "precision", [""], "float32, tf32, bfloat16, float16: one or several; default: the config's."
)
BATCH = flags.DEFINE_integer(
    "batch",
    0,
    "Images a device; default: 2 (train), 1 (infer, slide), the config's (data).",
    lower_bound=0,
)
SIZE = flags.DEFINE_string(
    "size", "", "HxW; default: the config's crop (train), 1024x2048 (infer, slide)."
)
DEVICES = flags.DEFINE_integer("devices", 1, "How many devices train.", lower_bound=1)
WARMUP = flags.DEFINE_integer("warmup", 10, "Runs that do not count.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 30, "Timings; their median is reported.", lower_bound=1)
STEPS = flags.DEFINE_integer(
    "steps", 1, "Runs in a timing, one after the other without waiting.", lower_bound=1
)
JSON = flags.DEFINE_string(
    "json", "", "A file whose list of measurements grows; made if it is missing."
)


@flags.validator("size", message="give --size=HxW, for example 512x1024")
def _is_size(text: str) -> bool:
    return not text or bool(re.fullmatch(r"[1-9]\d*x[1-9]\d*", text))


def main(_: list[str]) -> None:
    from jaxseg import benchmark
    from jaxseg.config.resolve import resolve

    if JSON.value:
        files.check_output(JSON.value, "--json", is_file=True)
    config, failed = resolve(CONFIG.value), False
    timing = benchmark.Timing(WARMUP.value, REPEATS.value, STEPS.value)
    options = dict(
        batch=BATCH.value,
        size=tuple(map(int, SIZE.value.split("x"))) if SIZE.value else (),
        devices=DEVICES.value,
    )
    for name in PRECISION.value:
        try:
            row = benchmark.measure(
                config, WHAT.value, precision_name=name, timing=timing, **options
            )
        except (
            jax.errors.JaxRuntimeError
        ) as error:  # out of memory in one precision must not lose the others
            failed, row = (
                True,
                dict(config=config.name, what=WHAT.value, precision=name, error=str(error)[:300]),
            )
        print(json.dumps(row), flush=True)
        if JSON.value:
            benchmark.append(JSON.value, [row])
    sys.exit(failed)


if __name__ == "__main__":
    cli.run(main)
