"""The published experiments as a table: what there is, how well it does, where its weights are."""

import csv
import difflib
import functools
from collections.abc import Sequence
from pathlib import Path

from jaxseg.errors import ConfigError

# The 25 methods of the model zoo: title -> (the config file, what its backbones' names begin with); '' is any.
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
# Data sets with a column in the overview.
COLUMNS = {"Cityscapes": "cityscapes", "ADE20K": "ade20k", "VOC 2012 + aug": "voc12aug"}
BEGIN = "<!-- zoo: begin (python scripts/list_configs.py --markdown) -->"
END = "<!-- zoo: end -->"
# ImageNet weights that published runs began with: the last part of `pretrained` -> path below the download address.
IMAGENET = {
    "resnet18_v1c": "pretrain/third_party/resnet18_v1c-b5776b93.pth",
    "resnet50_v1c": "pretrain/third_party/resnet50_v1c-2cccc1ad.pth",
    "resnet101_v1c": "pretrain/third_party/resnet101_v1c-e67eebb6.pth",
    "hrnetv2_w18_small": "pretrain/third_party/hrnetv2_w18_small-b5a04e21.pth",
    "hrnetv2_w18": "pretrain/third_party/hrnetv2_w18-00eb2006.pth",
    "hrnetv2_w48": "pretrain/third_party/hrnetv2_w48-d2186c55.pth",
    "resnest101": "pretrain/third_party/resnest101_d2-f3b931b2.pth",
    "mobilenet_v2": "mmclassification/v0/mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth",
    "mobilenet_v3_large": "pretrain/third_party/mobilenet_v3_large-bc2c3fd3.pth",
    "mobilenet_v3_small": "pretrain/third_party/mobilenet_v3_small-47085aa1.pth",
    "resnet50_8xb256-rsb-a1-600e_in1k": "mmclassification/v0/resnet/resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth",
}


@functools.cache
def published() -> tuple[dict[str, str], ...]:
    """The 478 published experiments as rows of zoo.csv: name, source (MMSegmentation 1.x's), parameters,
    parameters_inference, mIoU, mIoU_ms_flip, checkpoint, pretrained, url_path; '' where nothing was published.

    Where MMSegmentation's own index names two experiments alike, a row has the file and figures of its own name.
    """
    with open(Path(__file__).with_name("zoo.csv"), newline="") as file:
        return tuple(csv.DictReader(file))


def find(words: Sequence[str] = ()) -> list[dict[str, str]]:
    """The experiments whose names contain every one of `words`."""
    return [row for row in published() if all(word in row["name"] for word in words)]


def weights_path(name: str) -> str:
    """Where the weights of a published experiment, or of an ImageNet backbone such as resnet50_v1c, lie below the download
    address. Raises ConfigError, with the nearest name, for one that is unknown or has no published weights."""

    paths = {row["name"]: row["url_path"] for row in published()} | IMAGENET
    if name not in paths:
        near = difflib.get_close_matches(name, paths, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        hint += f"scripts/list_configs.py lists all {len(published())}"
        raise ConfigError(f"unknown experiment '{name}'", field="--download", hint=hint)
    if not paths[name]:
        raise ConfigError(
            f"MMSegmentation published no weights of '{name}'", field="--download",
            hint=f"similar ones: python scripts/list_configs.py {name.split('_')[0]}",
        )  # fmt: skip
    return paths[name]


def text_table(rows: Sequence[dict[str, str]]) -> str:
    """Name, parameters, published mIoU (and with scales and flips) and checkpoint file, a line each, and their number."""
    head = ("name", "parameters", "mIoU", "ms+flip", "checkpoint")
    lines = [
        (
            r["name"],
            f"{int(r['parameters']):,}",
            r["mIoU"] or "-",
            r["mIoU_ms_flip"] or "-",
            r["checkpoint"] or "-",
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(4)]
    text = [
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}"
        for a, b, c, d, e in [head, *lines]
    ]
    return "\n".join([*text, f"{len(rows)} of {len(published())} published experiments"])


def backbone_of(row: dict[str, str]) -> str:
    """The backbone's name in a row's: 'r50-d8', 'hr18s'; '' for fast_scnn and cgnet."""
    parts = row["name"].removeprefix("fast_scnn").removeprefix("cgnet").split("_")
    parts = [p for p in parts[1:] if p not in ("d6", "")]
    return "" if "x" in parts[0] and parts[0].replace("x", "").isdigit() else parts[0]


def rows_of(method: str) -> list[dict[str, str]]:
    """The experiments of one of METHODS."""
    config, backbone = METHODS[method]
    return [
        row
        for row in published()
        if row["name"].startswith(config and f"{config}_") and backbone_of(row).startswith(backbone)
    ]


def markdown_table() -> str:
    """README's overview, between its markers: a row a method, with config files, backbones, parameters and published mIoU."""
    lines = [
        f"| Method | Config | Backbones | Parameters (M) | {' | '.join(f'mIoU {title}' for title in COLUMNS)} | Experiments |",
        f"|---|---|---|---:|{'---:|' * len(COLUMNS)}---:|",
    ]
    for method in METHODS:
        rows = rows_of(method)
        configs = sorted({_config_of(row) for row in rows})
        backbones = sorted({backbone_of(row) for row in rows} - {""}, key=_natural)
        sizes = _range([int(row["parameters"]) / 1e6 for row in rows], 1)
        scores = [
            _range([float(r["mIoU"]) for r in rows if r["mIoU"] and r["name"].endswith(f"_{d}")], 2)
            for d in COLUMNS.values()
        ]
        cells = [
            method,
            ", ".join(f"`{c}`" for c in configs),
            ", ".join(backbones) or "its own",
            sizes,
            *scores,
            str(len(rows)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([BEGIN, *lines, END])


def _config_of(row: dict[str, str]) -> str:
    return "fast_scnn" if row["name"].startswith("fast_scnn") else row["name"].split("_")[0]


def _natural(text: str) -> tuple:
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    return (text.rstrip("0123456789-dmgsb")[:1], *(int(d) for d in digits), text)


def _range(values: Sequence[float], digits: int) -> str:
    """'1.5', '12.8-68.5', or '-' for none."""
    if not values:
        return "-"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}\N{EN DASH}{high}"
