r"""Convert MMSegmentation's checkpoints to workdirs and back, and download published ones.

Convert a file, or download and convert a published one:

  python scripts/convert_mmseg.py --config=configs/pspnet.py:r50-d8_512x1024_40k_cityscapes \
      --checkpoint=FILE.pth --output=runs/pspnet
  python scripts/convert_mmseg.py --download=pspnet_r50-d8_512x1024_40k_cityscapes \
      --output=runs/pspnet

Download ImageNet weights for --config.init_from:

  python scripts/convert_mmseg.py --download=resnet50_v1c

Write a checkpoint for MMSegmentation:

  python scripts/convert_mmseg.py --checkpoint=runs/mine --to_mmseg=mine.pth

.pth, .pt, .safetensors and .npz are read; nothing in a .pth is executed, and PyTorch is needed only
to write one.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from jaxseg import cli, convert, files, zoo
from jaxseg.config.finder import get_experiment
from jaxseg.weights import download

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "File to convert; with --to_mmseg: workdir, or one step in it."
)
OUTPUT = flags.DEFINE_string(
    "output", "", "Workdir to write; eval.py, predict.py and --config.init_from take it."
)
EMA = flags.DEFINE_bool(
    "ema", False, "Take the moving average of the weights, if the file holds one."
)
TO_MMSEG = flags.DEFINE_string(
    "to_mmseg",
    "",
    "Write --checkpoint as this .pth, .safetensors or .npz with MMSegmentation's names.",
)
DOWNLOAD = flags.DEFINE_string(
    "download",
    "",
    "Fetch the published weights of this experiment (scripts/list_configs.py lists them).",
)
FOLDER = flags.DEFINE_string("folder", "weights", "Folder for downloads.")
ADDRESS = flags.DEFINE_string(
    "address",
    "",
    "Server to download from, instead of JAXSEG_MMSEG_URL or MMSegmentation's own.",
)


@flags.multi_flags_validator(
    ["checkpoint", "download"], message="give --checkpoint or --download, one of them"
)
def _one_source(values: dict[str, Any]) -> bool:
    return bool(values["checkpoint"]) != bool(values["download"])


@flags.multi_flags_validator(
    ["config", "checkpoint", "output", "to_mmseg"],
    message="--checkpoint=FILE needs --config and --output; --to_mmseg=FILE needs "
    "--checkpoint=WORKDIR and reads its config, so no --config",
)
def _complete(values: dict[str, Any]) -> bool:
    if values["to_mmseg"]:
        return bool(values["checkpoint"]) and not values["config"]
    return not values["checkpoint"] or bool(values["config"] and values["output"])


def _progress(done: int, total: int) -> None:
    print(
        f"\r{done / 1e6:.1f} of {total / 1e6:.1f} MB",
        end="\n" if done == total else "",
        file=sys.stderr,
        flush=True,
    )


def main(_: Sequence[str]) -> None:
    """Convert, export or download, depending on the flags."""
    config, file = CONFIG.value, CHECKPOINT.value
    for flag, is_file in ((OUTPUT, False), (TO_MMSEG, True), (FOLDER, False)):
        if flag.value:
            files.check_output(flag.value, f"--{flag.name}", is_file=is_file)
    if TO_MMSEG.value:
        count = convert.export_checkpoint(file, TO_MMSEG.value)
        print(f"wrote {count} tensors to {TO_MMSEG.value}")
        return
    if DOWNLOAD.value:
        path = zoo.weights_path(DOWNLOAD.value)
        file = download.fetch(path, FOLDER.value, ADDRESS.value, _progress)
        print(f"{file} is complete and has the published SHA-256")
        if not OUTPUT.value:
            return
        config = config or get_experiment(DOWNLOAD.value)
    report = convert.convert_checkpoint(config, file, OUTPUT.value, ema=EMA.value)
    print(
        f"{file}: all of its {len(report.loaded)} tensors are in {OUTPUT.value} "
        "(config.json, dataset.json, checkpoints/0)"
    )


if __name__ == "__main__":
    cli.run_main(main, needs_config=False)
