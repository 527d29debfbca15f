"""The published experiments: their names, results and weights."""

import csv
import functools
from collections.abc import Sequence
from pathlib import Path

from jaxseg.errors import ConfigError
from jaxseg.registry import find_nearest

CLOSE = 0.6  # similarity of a suggestion: the names share most of their parts

Row = dict[str, str]  # of the table of published experiments
# The 25 methods of the model zoo: title -> (config file, prefix of the backbone's name); "" matches
# any.
METHODS: dict[str, tuple[str, str]] = {
    "FCN": ("fcn", "r"),
    "PSPNet": ("pspnet", "r"),
    "DeepLabV3": ("deeplabv3", "r"),
    "DeepLabV3+": ("deeplabv3plus", "r"),
    "PSANet": ("psanet", ""),
    "UPerNet": ("upernet", ""),
    "NonLocal": ("nonlocal", ""),
    "EncNet": ("encnet", ""),
    "CCNet": ("ccnet", ""),
    "DANet": ("danet", ""),
    "APCNet": ("apcnet", ""),
    "HRNet": ("fcn", "hr"),
    "GCNet": ("gcnet", ""),
    "DMNet": ("dmnet", ""),
    "ANN": ("ann", ""),
    "OCRNet": ("ocrnet", ""),
    "Fast-SCNN": ("fast_scnn", ""),
    "ResNeSt": ("", "s101"),
    "Semantic FPN": ("fpn", ""),
    "PointRend": ("pointrend", ""),
    "MobileNetV2": ("", "m-v2"),
    "MobileNetV3": ("lraspp", ""),
    "EMANet": ("emanet", ""),
    "DNLNet": ("dnl", ""),
    "CGNet": ("cgnet", ""),
}
# Data sets with a column in the overview: title -> name.
COLUMNS = {"Cityscapes": "cityscapes", "ADE20K": "ade20k", "VOC 2012 + aug": "voc12aug"}
BEGIN = "<!-- zoo: begin (python scripts/list_configs.py --markdown) -->"
END = "<!-- zoo: end -->"
# ImageNet weights that published runs started from: last part of `pretrained` -> path below the
# download address.
IMAGENET = {
    "resnet18_v1c": "pretrain/third_party/resnet18_v1c-b5776b93.pth",
    "resnet50_v1c": "pretrain/third_party/resnet50_v1c-2cccc1ad.pth",
    "resnet101_v1c": "pretrain/third_party/resnet101_v1c-e67eebb6.pth",
    "hrnetv2_w18_small": "pretrain/third_party/hrnetv2_w18_small-b5a04e21.pth",
    "hrnetv2_w18": "pretrain/third_party/hrnetv2_w18-00eb2006.pth",
    "hrnetv2_w48": "pretrain/third_party/hrnetv2_w48-d2186c55.pth",
    "resnest101": "pretrain/third_party/resnest101_d2-f3b931b2.pth",
    "mobilenet_v2": (
        "mmclassification/v0/mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth"
    ),
    "mobilenet_v3_large": "pretrain/third_party/mobilenet_v3_large-bc2c3fd3.pth",
    "mobilenet_v3_small": "pretrain/third_party/mobilenet_v3_small-47085aa1.pth",
    "resnet50_8xb256-rsb-a1-600e_in1k": (
        "mmclassification/v0/resnet/resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth"
    ),
}


@functools.cache
def published() -> tuple[Row, ...]:
    """Return the 478 published experiments, the rows of zoo.csv.

    The columns are name, source (MMSegmentation 1.x's config), parameters, parameters_inference,
    mIoU, mIoU_ms_flip, checkpoint, pretrained and url_path; "" where nothing was published. Where
    MMSegmentation's own index lists two experiments under one name, a row has the file and results
    that belong to its name.
    """
    with open(Path(__file__).with_name("zoo.csv"), newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def find(words: Sequence[str] = ()) -> list[Row]:
    """Return the experiments whose names contain all of these words."""
    return [row for row in published() if all(word in row["name"] for word in words)]


def weights_path(name: str) -> str:
    """Return the path of published weights, relative to the download address.

    Args:
        name: An experiment, or an ImageNet backbone such as `resnet50_v1c`.

    Raises:
        ConfigError: The name is unknown (the error gives the nearest), or has no published weights.
    """
    paths = {row["name"]: row["url_path"] for row in published()} | IMAGENET
    if name not in paths:
        hint = f"scripts/list_configs.py lists all {len(published())}"
        if near := find_nearest(name, paths, CLOSE):
            hint = f"did you mean '{near}'? {hint}"
        raise ConfigError(f"unknown experiment '{name}'", field="name", hint=hint)
    if not paths[name]:
        raise ConfigError(
            f"MMSegmentation published no weights for '{name}'",
            field="name",
            hint=f"similar ones: python scripts/list_configs.py {name.split('_')[0]}",
        )
    return paths[name]


def backbone_of(row: Row) -> str:
    """Return the backbone in a name: 'r50-d8', 'hr18s'; '' for fast_scnn and cgnet."""
    parts = row["name"].removeprefix("fast_scnn").removeprefix("cgnet").split("_")
    backbone = next(part for part in parts[1:] if part not in ("d6", ""))
    is_crop = "x" in backbone and backbone.replace("x", "").isdigit()
    return "" if is_crop else backbone


def rows_of(method: str) -> list[Row]:
    """Return the experiments of one of METHODS."""
    config, backbone = METHODS[method]
    prefix = f"{config}_" if config else ""
    return [
        row
        for row in published()
        if row["name"].startswith(prefix) and backbone_of(row).startswith(backbone)
    ]


# --- Tables ---------------------------------------------------------------------------------------


def text_table(rows: Sequence[Row]) -> str:
    """Format experiments as a table for a terminal.

    Each row has the name, parameters, published mIoU (single scale, then multi-scale with flips)
    and checkpoint file; the last line counts the rows.

    Args:
        rows: Experiments, from `published` or `find`.

    Returns:
        The table, without a final newline.
    """
    lines = [("name", "parameters", "mIoU", "ms+flip", "checkpoint")]
    for row in rows:
        scores = (row["mIoU"] or "-", row["mIoU_ms_flip"] or "-", row["checkpoint"] or "-")
        lines.append((row["name"], f"{int(row['parameters']):,}", *scores))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = [
        f"{name:<{widths[0]}}  {parameters:>{widths[1]}}  {miou:>{widths[2]}}  "
        f"{ms_flip:>{widths[3]}}  {checkpoint}"
        for name, parameters, miou, ms_flip, checkpoint in lines
    ]
    return "\n".join([*text, f"{len(rows)} of {len(published())} published experiments"])


def markdown_table() -> str:
    """Format README's overview of the methods in Markdown, between its markers.

    Each method has a row with its config files, backbones, parameters and published mIoU.
    """
    titles = " | ".join(f"mIoU {title}" for title in COLUMNS)
    lines = [
        f"| Method | Config | Backbones | Parameters (M) | {titles} | Experiments |",
        f"|---|---|---|---:|{'---:|' * len(COLUMNS)}---:|",
    ]
    lines += [f"| {' | '.join(_overview(method))} |" for method in METHODS]
    return "\n".join([BEGIN, *lines, END])


def _overview(method: str) -> list[str]:
    """Return the cells of a method in README's overview."""
    rows = rows_of(method)
    configs = sorted({_config_of(row) for row in rows})
    backbones = sorted({backbone_of(row) for row in rows} - {""}, key=_natural)
    scores = [
        _range(
            [
                float(row["mIoU"])
                for row in rows
                if row["mIoU"] and row["name"].endswith(f"_{dataset}")
            ],
            2,
        )
        for dataset in COLUMNS.values()
    ]
    return [
        method,
        ", ".join(f"`{config}`" for config in configs),
        ", ".join(backbones) or "its own",
        _range([int(row["parameters"]) / 1e6 for row in rows], 1),
        *scores,
        str(len(rows)),
    ]


def _config_of(row: Row) -> str:
    """Return the config file of an experiment."""
    return "fast_scnn" if row["name"].startswith("fast_scnn") else row["name"].split("_")[0]


def _natural(text: str) -> tuple[object, ...]:
    """Return a key that sorts names by their letters, then by the numbers in them."""
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    return (text.rstrip("0123456789-dmgsb")[:1], *(int(d) for d in digits), text)


def _range(values: Sequence[float], digits: int) -> str:
    """Format the range of numbers: '1.5', '12.8-68.5', or '-' for none."""
    if not values:
        return "-"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}\N{EN DASH}{high}"
