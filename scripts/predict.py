"""Segment photos: writes <stem>.png (class ids, with a palette) and <stem>_overlay.png for each.

  python scripts/predict.py --checkpoint=runs/quickstart --input=photos --output=segmented
  python scripts/predict.py --checkpoint=runs/quickstart --input=photo.jpg --output=mask.png

--config.eval.* overrides the config of the run. With --config, which is optional here, its dataset and eval parts replace
those of the run first (an empty dataset.root stays the run's if the data set is the same).
"""

from absl import flags

from jaxseg import cli

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A workdir (its best step is taken) or one step, WORKDIR/checkpoints/STEP.",
    required=True,
)
INPUT = flags.DEFINE_string("input", None, "An image file or a folder of images.", required=True)
SUBMISSION = flags.DEFINE_bool(
    "submission",
    False,
    "Write only <stem>.png, with the data set's own label values or colours, as benchmarks want them.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The folder to write into, made if it is missing; of one image also a file, NAME.png.",
    required=True,
)


def main(_: list[str]) -> None:
    from jaxseg.inference.files import predict_checkpoint

    files = predict_checkpoint(
        CHECKPOINT.value,
        INPUT.value,
        OUTPUT.value,
        config=CONFIG.value,
        submission=SUBMISSION.value,
    )
    print(f"segmented {len(files)} image{'s'[: len(files) != 1]} into {OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main, needs_config=False, of_run=True)
