r"""Draw training samples as the network sees them, a picture of each and a sheet of all.

  python scripts/browse_data.py --config=configs/pspnet.py:r18-d8_240x320_2k_folder \
    --config.dataset.root=data/mine --output=look
  python scripts/browse_data.py ... --raw          the same images without augmentation

A picture shows the image and, beside it, the label over the image.
"""

from absl import flags

from jaxseg import cli, files
from jaxseg.browse import browse
from jaxseg.experiments import open_experiment

CONFIG = cli.define_config()
OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write into; made if it is missing.", required=True
)
COUNT = flags.DEFINE_integer("count", 16, "Number of samples.", lower_bound=1)
RAW = flags.DEFINE_bool(
    "raw", False, "Show the images as they are in their files, without augmentation."
)


def main(_: list[str]) -> None:
    """Write the pictures."""
    files.check_output(OUTPUT.value, "--output")
    experiment, spec = open_experiment(CONFIG.value)
    written = browse(experiment, spec, OUTPUT.value, COUNT.value, raw=RAW.value)
    print(f"wrote {len(written) - 1} samples into {OUTPUT.value}; {written[-1]} shows them all")


if __name__ == "__main__":
    cli.run_main(main)
