r"""Write a data set as a TFDS data set of ArrayRecord shards: fast to read, few files.

  python scripts/prepare_data.py --name=folder --root=data/mine --output=data/prepared
  python scripts/prepare_data.py --name=cityscapes --root=data/cityscapes --output=data/prepared \
    --codec=zstd
  python scripts/prepare_data.py --name=potsdam --root=downloads/potsdam --output=data/prepared

An interrupted run continues when it is started again. --root contains images/, labels/ and
classes.txt (folder), the data set's pairs of files, or its unpacked download (of Cityscapes, its
two zips). --codec:

{codecs}
"""

import shlex
from pathlib import Path

from absl import flags

from jaxseg import cli, files
from jaxseg.data.prepare.codecs import CODECS
from jaxseg.data.prepare.writer import PLAN, prepare

__doc__ = __doc__.format(codecs="\n".join(f"  {name:5} {what}" for name, what in CODECS.items()))

NAME = flags.DEFINE_string("name", "folder", "The name of the data set.")
ROOT = flags.DEFINE_string("root", None, "The folder of the data set.", required=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write below; made if it is missing.", required=True
)
SPLITS = flags.DEFINE_list("splits", [], "The splits to write; train and val by default.")
CODEC = flags.DEFINE_enum(
    "codec", "keep", list(CODECS), "How images are stored, see above; labels are always lossless."
)
QUALITY = flags.DEFINE_integer(
    "quality", 95, "JPEG quality, for --codec=jpeg.", lower_bound=1, upper_bound=100
)
SHARDS = flags.DEFINE_integer(
    "shards", 0, "Files per split; 0: one per 100 images, at most 64.", lower_bound=0
)
CHANNELS = flags.DEFINE_integer(
    "channels",
    0,
    "Channels of the images; 0: 3, or those of the first image if it has more than 4.",
    lower_bound=0,
)


def main(_: list[str]) -> None:
    """Write the data set, and print how to train on it."""
    files.check_output(OUTPUT.value, "--output")
    folder = prepare(
        NAME.value,
        ROOT.value,
        OUTPUT.value,
        splits=SPLITS.value,
        codec=CODEC.value,
        quality=QUALITY.value,
        shards=SHARDS.value,
        channels=CHANNELS.value,
    )
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(
        f"{folder} holds {megabytes:.1f} MB. Train on it, for example (choose crop and steps for "
        f"your data):\n\n{_train_command(folder)}"
    )


def _train_command(folder: Path) -> str:
    """Return the command line that trains on a prepared data set."""
    crop = "512x1024" if NAME.value == "cityscapes" else "512x512"
    config = f"configs/pspnet.py:r50-d8_{crop}_40k_{NAME.value}"
    source = f"--config.dataset.source=tfds --config.dataset.root={shlex.quote(OUTPUT.value)}"
    channels = files.read_json(folder / PLAN)["channels"]
    if channels != 3:
        source += f" --config.dataset.channels={channels}"
    return (
        f"  python scripts/train.py --config={config} --workdir=runs/{NAME.value} \\\n    {source}"
    )


if __name__ == "__main__":
    cli.run_main(main, needs_config=False)
