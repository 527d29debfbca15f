"""Default hyper-parameters of each data set and backbone that a variant can name."""

from typing import Any

# Mean and standard deviation of ImageNet's RGB channels, 0 to 255.
IMAGENET = {"image_mean": (123.675, 116.28, 103.53), "image_std": (58.395, 57.12, 57.375)}

NO_NODATA = ("none",)  # dataset.nodata to ignore the nodata values that files declare
AUTO = ("auto",)  # class_weight to be measured on the training labels
# Options of a cross entropy in config.losses, and of its sampler.
SAMPLER: dict[str, Any] = {"name": "", "min_kept": 100000, "threshold": 0.0}
CROSS_ENTROPY: dict[str, Any] = {
    "sigmoid": False,
    "class_weight": (),
    "average": "all",
    "sampler": SAMPLER,
}
# Published recipes that a variant can name.
FP16 = {"precision": "float16", "loss_scale": 512.0}
RSB_ADAMW: dict[str, Any] = {
    "optimizer": {"name": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05, "clip_norm": 1.0},
    "schedule": {"name": "step", "warmup_steps": 1000, "warmup_factor": 1e-3},
    "pretrained": "resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth",
}
LOSS_ALIASES = {"class_presence": "se_loss"}  # names of the first edition
# resize: (long, short) of the scaled image, (0, 0) its own size; slide: evaluate in windows of the
# training crop.
_PASCAL_CONTEXT = {
    "resize": (520, 520),
    "slide": True,
    "optimizer": {"learning_rate": 0.004, "weight_decay": 1e-4},
}
DATASETS: dict[str, dict[str, Any]] = {
    "shapes": dict(num_classes=7, resize=(0, 0), batch_size=16),
    "folder": dict(resize=(0, 0), batch_size=8),
    "camvid": dict(num_classes=11, resize=(0, 0), batch_size=8),
    "cityscapes": dict(num_classes=19, resize=(2048, 1024), batch_size=8),
    "ade20k": dict(num_classes=150, resize=(2048, 512)),
    "voc12": dict(num_classes=21, resize=(2048, 512)),
    "voc12aug": dict(num_classes=21, resize=(2048, 512)),
    "pascal_context": _PASCAL_CONTEXT | {"num_classes": 60},
    "pascal_context_59": _PASCAL_CONTEXT | {"num_classes": 59},
    "coco_stuff10k": dict(num_classes=171, resize=(2048, 512)),
    "coco_stuff164k": dict(num_classes=171, resize=(2048, 512)),
    "loveda": dict(num_classes=7, resize=(2048, 512), eval_resize=(1024, 1024)),
    "potsdam": dict(num_classes=6, resize=(512, 512)),
    "vaihingen": dict(num_classes=6, resize=(512, 512)),
    "isaid": dict(num_classes=16, resize=(896, 896)),
    "mapillary_v1_65": dict(
        num_classes=65,
        resize=(2048, 1024),
        batch_size=8,
        optimizer=dict(
            name="adamw",
            learning_rate=1e-4,
            weight_decay=1e-4,
            clip_norm=0.01,
            multipliers=dict(
                backbone=dict(pattern="^backbone/", learning_rate=0.1, weight_decay=1.0)
            ),
        ),
        schedule=dict(end_value=0.0),
    ),
    "dark_zurich": dict(
        num_classes=19,
        resize=(2048, 1024),
        eval_resize=(1920, 1080),
        batch_size=8,
        train_on="cityscapes",
    ),
    "night_driving": dict(
        num_classes=19,
        resize=(2048, 1024),
        eval_resize=(1920, 1080),
        batch_size=8,
        train_on="cityscapes",
    ),
    "drive": dict(num_classes=2, resize=(584, 565), slide=True),
    "chase_db1": dict(num_classes=2, resize=(960, 999), slide=True),
    "hrf": dict(num_classes=2, resize=(2336, 3504), slide=True),
    "stare": dict(num_classes=2, resize=(605, 700), slide=True),
}
_DILATED = {"": (1, 1, 1, 1), "-d8": (1, 1, 2, 4), "-d16": (1, 1, 1, 2), "-d32": (1, 1, 2, 4)}
_STRIDES = {"": (1, 2, 2, 2), "-d8": (1, 2, 1, 1), "-d16": (1, 2, 2, 1), "-d32": (1, 2, 2, 2)}
# Letter in the name -> (stem, stem channels, address of the ImageNet weights, depths with published
# runs).
_RESNETS = {
    "": ("v1c", 64, "open-mmlab://resnet{}_v1c", (18, 50, 101)),
    "b": ("v1", 64, "torchvision://resnet{}", (18, 50, 101)),
    "d": ("v1d", 64, "", ()),
    "s": ("v1c", 128, "open-mmlab://resnet{}_v1c", (18, 50, 101)),
}
_RESNESTS = {50: (64, ""), 101: (128, "open-mmlab://resnest101"), 200: (128, "")}


def _resnets() -> dict[str, dict[str, Any]]:
    """Return ResNets of every depth, stem (r50, r50b, r50d, r50s) and output stride."""
    table: dict[str, dict[str, Any]] = {}
    for depth in (10, 18, 34, 50, 101, 152):
        for letter, (stem, stem_channels, address, trained) in _RESNETS.items():
            for suffix in _DILATED:
                entry: dict[str, Any] = {
                    "name": "resnet",
                    "depth": depth,
                    "stem": stem,
                    "stem_channels": stem_channels,
                    "base_channels": 64,
                    "strides": _STRIDES[suffix],
                    "dilations": _DILATED[suffix],
                    "multi_grid": (),
                    "contract_dilation": True,
                    "pretrained": address.format(depth) if depth in trained else "",
                }
                table[f"r{depth}{letter}{suffix}"] = entry
                if suffix == "-d16":
                    table[f"r{depth}{letter}{suffix}-mg124"] = entry | {"multi_grid": (1, 2, 4)}
    return table


def _resnests() -> dict[str, dict[str, Any]]:
    """Return ResNeSts (s101-d8, ...) of every depth and output stride."""
    return {
        f"s{depth}{suffix}": {
            "name": "resnest",
            "depth": depth,
            "stem_channels": stem_channels,
            "base_channels": 64,
            "radix": 2,
            "reduction": 4,
            "avg_down_stride": True,
            "strides": _STRIDES[suffix],
            "dilations": _DILATED[suffix],
            "multi_grid": (),
            "contract_dilation": True,
            "pretrained": pretrained,
        }
        for depth, (stem_channels, pretrained) in _RESNESTS.items()
        for suffix in _DILATED
    }


def _hrnet(
    source: str, base_channels: int, blocks: int = 4, modules: tuple[int, ...] = (1, 4, 3)
) -> dict[str, Any]:
    return {
        "name": "hrnet",
        "base_channels": base_channels,
        "modules": modules,
        "blocks": blocks,
        "stem_channels": 64,
        "pretrained": f"open-mmlab://msra/hrnetv2_{source}",
    }


BACKBONES: dict[str, dict[str, Any]] = {
    **_resnets(),
    **_resnests(),
    "hr18s": _hrnet("w18_small", 18, blocks=2, modules=(1, 3, 2)),
    "hr18": _hrnet("w18", 18),
    "hr48": _hrnet("w48", 48),
    "m-v2-d8": dict(
        name="mobilenet_v2",
        widen_factor=1.0,
        strides=(1, 2, 2, 1, 1, 1, 1),
        dilations=(1, 1, 1, 2, 2, 4, 4),
        pretrained="mmcls://mobilenet_v2",
    ),
    "m-v3-d8": dict(
        name="mobilenet_v3",
        arch="large",
        widen_factor=1.0,
        pretrained="open-mmlab://contrib/mobilenet_v3_large",
    ),
    "m-v3s-d8": dict(
        name="mobilenet_v3",
        arch="small",
        widen_factor=1.0,
        pretrained="open-mmlab://contrib/mobilenet_v3_small",
    ),
}
BACKBONE_HELP = (
    "r10 r18 r34 r50 r101 r152, each also as b (7x7 stem), d (V1d), s (wide stem); "
    "with -d8 -d16 -d32 -d16-mg124 or nothing (not dilated)"
)
