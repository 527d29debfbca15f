"""Segment photos: write <stem>.png (class ids, with a palette) and <stem>_overlay.png of each.

  python scripts/predict.py --checkpoint=runs/quickstart --input=photos --output=segmented
  python scripts/predict.py --checkpoint=runs/quickstart --input=photo.jpg --output=mask.png

--config.eval.* overrides the config of the run. With --config, which is optional here, its dataset
and eval parts replace the run's first (an empty dataset.root stays the run's if the data set is the
same).
"""

from absl import flags

from jaxseg import cli
from jaxseg.inference.files import predict_checkpoint

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
    "Write only <stem>.png, with the data set's own label values or colours, as benchmarks "
    "expect them.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The folder to write into, made if it is missing; of one image also a file, NAME.png.",
    required=True,
)


def main(_: list[str]) -> None:
    """Segment the input."""
    files = predict_checkpoint(
        CHECKPOINT.value,
        INPUT.value,
        OUTPUT.value,
        config=CONFIG.value,
        submission=SUBMISSION.value,
    )
    images = "1 image" if len(files) == 1 else f"{len(files)} images"
    print(f"segmented {images} into {OUTPUT.value}")


if __name__ == "__main__":
    cli.run_main(main, needs_config=False, of_run=True)
