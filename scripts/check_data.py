"""What a data set really holds, and all that is wrong with it: reads every label and image header once.

  python scripts/check_data.py --root=data/mine                    a folder with images/, labels/ and classes.txt
  python scripts/check_data.py --root=data/cityscapes --name=cityscapes
  python scripts/check_data.py --config=configs/pspnet.py:r18-d8_240x320_2k_folder --config.dataset.root=data/mine
  python scripts/check_data.py --root=data/mine --statistics       also writes data/mine/statistics.json, which train.py reads

The exit status is 1 if training would go wrong, 0 if there are warnings at most; the last line says which.
"""

import sys
from pathlib import Path

from absl import flags

from jaxseg import cli, files

CONFIG = cli.define_config()
ROOT = flags.DEFINE_string(
    "root", "", "The folder of the data set, where there is no --config yet."
)
NAME = flags.DEFINE_string(
    "name", "folder", "With --root: the data set, one of those a config can name."
)
CHANNELS = flags.DEFINE_integer(
    "channels",
    0,
    "With --root: channels of the images; 0: 3, or those of the first image if it has more.",
    lower_bound=0,
)
STATISTICS = flags.DEFINE_bool(
    "statistics",
    False,
    "Also write mean and std of the training images' channels into ROOT/statistics.json.",
)
JSON = flags.DEFINE_string("json", "", "A file to write the whole report to.")


@flags.multi_flags_validator(
    ["config", "root"], message="give --root=DIR or --config=configs/FILE.py:VARIANT, one of them"
)
def _one_of(values: dict) -> bool:
    return bool(values["config"]) != bool(values["root"])


def main(_: list[str]) -> None:
    from jaxseg.config.resolve import check_alone
    from jaxseg.data.validate import report

    if JSON.value:
        files.check_output(JSON.value, "--json", is_file=True)
    if CONFIG.value is None:
        config = report.folder_config(ROOT.value, NAME.value, CHANNELS.value)
    else:
        config = check_alone(CONFIG.value)
    found = report.check_data(config, write_statistics=STATISTICS.value, progress=True)
    losses = [key for key, loss in config.get("losses", {}).items() if "class_weight" in loss]
    print(report.as_text(found, losses or ["decode"]))
    if JSON.value:
        Path(JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(JSON.value).write_text(report.as_json(found))
    sys.exit(0 if found.ok else 1)


if __name__ == "__main__":
    cli.run(main, needs_config=False)
