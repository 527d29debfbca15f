r"""Train a model; the same command again continues where it stopped.

  python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart
  python scripts/train.py --workdir=runs/pspnet \
      --config=configs/pspnet.py:r101-d8_512x1024_40k_cityscapes

Overfit a few images as a sanity check of data, labels and model:

  python scripts/train.py --config=... --workdir=runs/proof --overfit=4

Several hosts: start it on each with --coordinator=HOST:PORT --processes=N --process=I (on a cluster
that JAX knows, such as SLURM or TPU pods, --coordinator=auto is enough).
"""

import jax
from absl import flags

from jaxseg import cli, files

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
    "Overfit this many training images; exit with status 1 if mIoU 0.95 is not reached.",
    lower_bound=0,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Address of process 0 if several processes train together, or 'auto'."
)
PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes that train together.")
PROCESS = flags.DEFINE_integer("process", 0, "Index of this process.")


@flags.multi_flags_validator(
    ["coordinator", "processes", "process"],
    message="--processes and --process need --coordinator=HOST:PORT, and --process is 0 to "
    "--processes - 1",
)
def _are_processes_consistent(values: dict[str, object]) -> bool:
    is_address = values["coordinator"] not in ("", "auto")
    count, index = int(str(values["processes"])), int(str(values["process"]))
    return 0 <= index < count and (is_address or count == 1)


def main(_: list[str]) -> None:
    """Train, or overfit a few images."""
    # Imported here, as it takes seconds that --help and a wrong flag need not wait for.
    from jaxseg.training.loop import train  # noqa: PLC0415 - slow
    from jaxseg.training.overfit import overfit  # noqa: PLC0415 - slow

    files.check_output(WORKDIR.value, "--workdir")
    if COORDINATOR.value == "auto":
        jax.distributed.initialize()
    elif COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if OVERFIT.value:
        summary = overfit(CONFIG.value, WORKDIR.value, OVERFIT.value)
        print(
            f"overfitting worked: mIoU {summary['mIoU']:.4f} on {summary['images']} training "
            f"images, step {summary['step']}; reading, labels and model fit"
        )
    else:
        train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    cli.run_main(main)
