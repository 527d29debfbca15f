r"""Check a data set: read every image and label once and report everything that is wrong.

  python scripts/check_data.py --root=data/mine    a folder with images/, labels/ and classes.txt
  python scripts/check_data.py --root=data/cityscapes --name=cityscapes
  python scripts/check_data.py --config=configs/pspnet.py:r18-d8_240x320_2k_folder \
    --config.dataset.root=data/mine
  python scripts/check_data.py --root=data/mine --statistics
    also writes data/mine/statistics.json, which train.py reads

The exit status is 1 if training would go wrong, and 0 if there are only warnings or none; the last
line says which.
"""

import sys

from absl import flags

from jaxseg import cli, files
from jaxseg.config.schema import DatasetConfig, EvalConfig, from_dict
from jaxseg.data.catalog import load_spec
from jaxseg.data.validate import formatting, report
from jaxseg.validation import check_alone

CONFIG = cli.define_config()
ROOT = flags.DEFINE_string("root", "", "The folder of a data set that has no config yet.")
NAME = flags.DEFINE_string("name", "folder", "With --root: the name of the data set.")
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
    ["config", "root"],
    message="give --root=DIR or --config=configs/FILE.py:VARIANT, one of them",
)
def _is_one_given(values: dict[str, object]) -> bool:
    return bool(values["config"]) != bool(values["root"])


def main(_: list[str]) -> None:
    """Check the data set that the flags name."""
    if JSON.value:
        files.check_output(JSON.value, "--json", is_file=True)
    evaluation, losses = EvalConfig(), ["decode"]
    if CONFIG.value is None:
        dataset = report.folder_config(ROOT.value, NAME.value, CHANNELS.value)
    else:
        config = check_alone(CONFIG.value)
        dataset = from_dict(DatasetConfig, config.dataset)
        evaluation = from_dict(EvalConfig, config.eval)
        weighted = [label for label, loss in config.losses.items() if "class_weight" in loss]
        losses = weighted or losses
    found = report.check_data(
        dataset,
        evaluation,
        load_spec(dataset),
        write_statistics=STATISTICS.value,
        progress=True,
    )
    print(formatting.as_text(found, losses))
    if JSON.value:
        with files.atomic_path(JSON.value) as part:
            part.write_text(formatting.as_json(found))
    sys.exit(0 if found.ok else 1)


if __name__ == "__main__":
    cli.run_main(main, needs_config=False)
