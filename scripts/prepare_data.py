"""Write a data set as a TFDS data set of ArrayRecord shards: quick to read, few files. Run again after a stop, it goes on.

  python scripts/prepare_data.py --name=folder --root=data/mine --output=data/prepared
  python scripts/prepare_data.py --name=cityscapes --root=data/cityscapes --output=data/prepared --codec=zstd
  python scripts/prepare_data.py --name=potsdam --root=downloads/potsdam --output=data/prepared

--root holds images/, labels/ and classes.txt (folder), the data set's pairs of files, or its unpacked download (of Cityscapes,
its two zips). --codec:

{codecs}
"""

import json
import shlex

from absl import flags

from jaxseg import cli, files
from jaxseg.data.prepare.codecs import CODECS

__doc__ = __doc__.format(codecs="\n".join(f"  {name:5} {what}" for name, what in CODECS.items()))

NAME = flags.DEFINE_string("name", "folder", "The data set, one of those a config can name.")
ROOT = flags.DEFINE_string("root", None, "The folder it lies in.", required=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "The folder to write below; made if it is missing.", required=True
)
SPLITS = flags.DEFINE_list("splits", [], "The splits to write; train and val if nothing is given.")
CODEC = flags.DEFINE_enum(
    "codec",
    "keep",
    list(CODECS),
    "How images are stored, see above; labels are always stored without loss.",
)
QUALITY = flags.DEFINE_integer("quality", 95, "Of --codec=jpeg.", lower_bound=1, upper_bound=100)
SHARDS = flags.DEFINE_integer(
    "shards", 0, "Files of each split; 0: one for 100 images, 64 at most.", lower_bound=0
)
CHANNELS = flags.DEFINE_integer(
    "channels",
    0,
    "Of the images; 0: 3, or those of the first image if it has more than 4.",
    lower_bound=0,
)


def main(_: list[str]) -> None:
    from jaxseg.data.prepare.writer import PLAN, prepare

    files.check_output(OUTPUT.value, "--output")
    folder = prepare(
        NAME.value, ROOT.value, OUTPUT.value, splits=SPLITS.value, codec=CODEC.value, quality=QUALITY.value, shards=SHARDS.value,
        channels=CHANNELS.value,
    )  # fmt: skip
    size = sum(file.stat().st_size for file in folder.iterdir())
    channels, crop = (
        json.loads((folder / PLAN).read_text())["channels"],
        "512x1024" if NAME.value == "cityscapes" else "512x512",
    )
    more = f" --config.dataset.channels={channels}" if channels != 3 else ""
    print(
        f"{folder} holds {size / 1e6:.1f} MB. Train on it (with crops and steps that suit it), for example:\n"
    )
    print(
        f"  python scripts/train.py --config=configs/pspnet.py:r50-d8_{crop}_40k_{NAME.value} --workdir=runs/{NAME.value} \\"
    )
    print(
        f"    --config.dataset.source=tfds --config.dataset.root={shlex.quote(OUTPUT.value)}{more}"
    )


if __name__ == "__main__":
    cli.run(main, needs_config=False)
