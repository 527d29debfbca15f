"""Evaluate a trained or converted model: IoU and accuracy of each class.

Writes metrics.json and pictures/ into the workdir; those of one step,
--checkpoint=WORKDIR/checkpoints/STEP, go to WORKDIR/evaluations/STEP.

  python scripts/eval.py --checkpoint=runs/quickstart
  python scripts/eval.py --checkpoint=runs/quickstart --config.eval.flip=True
  python scripts/eval.py --checkpoint=runs/mine --config=configs/pspnet.py:r18-d8_240x320_2k_folder

--config.dataset.* and --config.eval.* override the config of the run. With --config, which is
optional here, its dataset and eval parts replace the run's first (an empty dataset.root stays the
run's if the data set is the same).
"""

from absl import flags

from jaxseg import cli
from jaxseg.evaluation import evaluate_checkpoint, evaluation_folder
from jaxseg.metrics import format_table

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "A workdir (its best step is taken) or one step, WORKDIR/checkpoints/STEP."
)
WORKDIR = flags.DEFINE_string("workdir", "", "The same as --checkpoint.")
PICTURES = flags.DEFINE_integer(
    "pictures", 8, "Number of panels [image | truth | prediction] to draw.", lower_bound=0
)


@flags.multi_flags_validator(
    ["checkpoint", "workdir"], message="give --checkpoint=DIR or --workdir=DIR, one of them"
)
def _one_of(values: dict[str, str]) -> bool:
    return bool(values["checkpoint"]) != bool(values["workdir"])


def main(_: list[str]) -> None:
    """Evaluate, and print the table of classes."""
    path = CHECKPOINT.value or WORKDIR.value
    summary = evaluate_checkpoint(path, CONFIG.value, pictures=PICTURES.value)
    print(format_table(summary))
    folder = evaluation_folder(path)
    wrote = str(folder / "metrics.json")
    if PICTURES.value:
        wrote += f" and {folder}/pictures"
    seconds = f"{summary['seconds']:.1f} s"
    print(f"step {summary['step']}: {summary['images']} images in {seconds}; wrote {wrote}")


if __name__ == "__main__":
    cli.run_main(main, needs_config=False, of_run=True)
