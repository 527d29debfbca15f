"""Train a model; the same command again continues where it stopped.

  python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart
  python scripts/train.py --config=configs/pspnet.py:r50-d8_512x1024_40k_cityscapes --workdir=runs/pspnet

  python scripts/train.py --config=... --workdir=runs/proof --overfit=4         learn 4 images by heart, or say that it failed

Several hosts: start it on each with --coordinator=HOST:PORT --processes=N --process=I (on a cluster that JAX knows,
such as SLURM or TPU pods, --coordinator=auto is enough).
"""

import jax
from absl import flags

from jaxseg import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of this run: config, checkpoints, logs, pictures, metrics.json.",
    required=True,
)
OVERFIT = flags.DEFINE_integer(
    "overfit",
    0,
    "Prove the pipeline on so many training images: mIoU 0.95 on them, or exit status 1.",
    lower_bound=0,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Address of process 0 where several processes train together, or 'auto'."
)
PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes train together.")
PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is.")


@flags.multi_flags_validator(
    ["coordinator", "processes", "process"],
    message="--processes and --process need --coordinator=HOST:PORT, and --process is 0 to --processes - 1",
)
def _processes(values: dict) -> bool:
    named = values["coordinator"] not in ("", "auto")
    return 0 <= values["process"] < values["processes"] and (named or values["processes"] == 1)


def main(_: list[str]) -> None:
    from jaxseg.training.loop import train
    from jaxseg.training.overfit import overfit

    if COORDINATOR.value == "auto":
        jax.distributed.initialize()
    elif COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if OVERFIT.value:
        summary = overfit(CONFIG.value, WORKDIR.value, OVERFIT.value)
        print(
            f"overfitting worked: mIoU {summary['mIoU']:.4f} on {summary['images']} training images, step {summary['step']}; reading, labels and model fit"
        )
    else:
        train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
