"""Tables: what a data set or a backbone, by its name in a variant, implies for a config."""

from typing import Any

IMAGENET = dict(image_mean=(123.675, 116.28, 103.53), image_std=(58.395, 57.12, 57.375))

# What every data set's config.dataset and config.eval begin with (fields: docs/config.md); statistics () are those of the data.
DATASET: dict[str, Any] = dict(
    name="", source="files", root="", train_split="train", val_split="val", concat={}, class_balance=0.0,
    crop_size=(0, 0), resize=(0, 0), ratio_range=(0.5, 2.0), cat_max_ratio=0.75, class_crop=0.0, flip=0.5, vertical_flip=0.0,
    rotate=0.0, rotate_degrees=10.0, cutout=0.0, clahe=0.0, mosaic=0.0, photometric=True,
    channels=3, dtype="", image_mean=(), image_std=(), nodata=(), max_pixels=2**30, classes=(), match_classes="order",
    num_workers=0, check_samples=500,
)  # fmt: skip
CONCAT: dict[str, Any] = dict(
    name="", source="files", root="", train_split="", repeat=1
)  # of each entry of config.dataset.concat
EVALUATION: dict[str, Any] = dict(
    dataset="",
    source="",
    root="",
    resize=(0, 0),
    mode="whole",
    crop_size=(0, 0),
    stride=(0, 0),
    scales=(1.0,),
    flip=False,
    batch_size=1,
)
NO_NODATA = ("none",)  # dataset.nodata if every value was measured, whatever files declare
AUTO = ("auto",)  # class_weight as measured on the training labels
# Of each entry of config.losses, of each that is a cross entropy, and of its sampler.
LOSS: dict[str, Any] = dict(target="", weight=1.0)
SAMPLER: dict[str, Any] = dict(name="", min_kept=100000, threshold=0.0)
CROSS_ENTROPY: dict[str, Any] = dict(sigmoid=False, class_weight=(), average="all", sampler=SAMPLER)
# What every other config begins with; a config of an earlier version has these in place of fields it did not know.
DEFAULTS: dict[str, Any] = dict(
    seed=0, eval_every=0, checkpoint_every=0, keep_checkpoints=2, log_every=50,
    precision="float32", loss_scale=0.0, init_from="", pretrained="",
    model=dict(
        neck=dict(name=""), num_classes=None, align_corners=False, dropout_rate=0.1,
        norm=dict(momentum=0.9, epsilon=1e-5),
    ),
    losses={},
    optimizer=dict(
        name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=5e-4, b1=0.9, b2=0.999, eps=1e-8,
        clip_norm=0.0, multipliers={},
    ),
    schedule=dict(
        name="poly", power=0.9, end_value=1e-4, warmup_steps=0, warmup_factor=0.1, boundaries=(), decay=0.1,
    ),
    dataset=DATASET, eval=EVALUATION,
)  # fmt: skip
# resize: (long, short) of the scaled image, (0, 0) its own size; slide: evaluate in windows of the training crop.
_PASCAL_CONTEXT = dict(resize=(520, 520), slide=True, learning_rate=0.004, weight_decay=1e-4)
DATASETS: dict[str, dict[str, Any]] = {
    "shapes": dict(resize=(0, 0), batch_size=16),
    "folder": dict(resize=(0, 0), batch_size=8),
    "camvid": dict(resize=(0, 0), batch_size=8),
    "cityscapes": dict(resize=(2048, 1024), batch_size=8),
    "ade20k": dict(resize=(2048, 512)),
    "voc12": dict(resize=(2048, 512)),
    "voc12aug": dict(resize=(2048, 512)),
    "pascal_context": _PASCAL_CONTEXT,
    "pascal_context_59": _PASCAL_CONTEXT,
    "coco_stuff10k": dict(resize=(2048, 512)),
    "coco_stuff164k": dict(resize=(2048, 512)),
    "loveda": dict(resize=(2048, 512), eval_resize=(1024, 1024)),
    "potsdam": dict(resize=(512, 512)),
    "vaihingen": dict(resize=(512, 512)),
    "isaid": dict(resize=(896, 896)),
    "mapillary_v1_65": dict(resize=(2048, 1024), batch_size=8),
    "dark_zurich": dict(
        resize=(2048, 1024), eval_resize=(1920, 1080), batch_size=8, train_on="cityscapes"
    ),
    "night_driving": dict(
        resize=(2048, 1024), eval_resize=(1920, 1080), batch_size=8, train_on="cityscapes"
    ),
    "drive": dict(resize=(584, 565), slide=True),
    "chase_db1": dict(resize=(960, 999), slide=True),
    "hrf": dict(resize=(2336, 3504), slide=True),
    "stare": dict(resize=(605, 700), slide=True),
}
_DILATED = {"": (1, 1, 1, 1), "-d8": (1, 1, 2, 4), "-d16": (1, 1, 1, 2), "-d32": (1, 1, 2, 4)}
_STRIDES = {"": (1, 2, 2, 2), "-d8": (1, 2, 1, 1), "-d16": (1, 2, 2, 1), "-d32": (1, 2, 2, 2)}


def _resnets() -> dict[str, dict[str, Any]]:
    """r50-d8 (V1c stem), r50b-d8 (V1), r50d-d8 (V1d), r50s-d8 (V1c, 128 stem channels), for every depth and output stride; -mg124."""
    stems = {"": ("v1c", 64), "b": ("v1", 64), "d": ("v1d", 64), "s": ("v1c", 128)}
    table = {}
    for depth in (10, 18, 34, 50, 101, 152):
        for letter, (stem, stem_channels) in stems.items():
            for suffix in _DILATED:
                source = (
                    f"torchvision://resnet{depth}"
                    if letter == "b"
                    else f"open-mmlab://resnet{depth}_v1{'d' if letter == 'd' else 'c'}"
                )
                entry = dict(
                    name="resnet", depth=depth, stem=stem, stem_channels=stem_channels, base_channels=64,
                    strides=_STRIDES[suffix], dilations=_DILATED[suffix], multi_grid=(), contract_dilation=True,
                    pretrained=source,
                )  # fmt: skip
                table[f"r{depth}{letter}{suffix}"] = entry
                if suffix == "-d16":
                    table[f"r{depth}{letter}{suffix}-mg124"] = entry | dict(multi_grid=(1, 2, 4))
    return table


def _resnests() -> dict[str, dict[str, Any]]:
    """s101-d8 and its kin: ResNeSt, for every depth and output stride."""
    split = dict(radix=2, reduction=4, avg_down_stride=True)
    return {
        f"s{depth}{suffix}": dict(
            name="resnest", depth=depth, stem_channels=stem_channels, base_channels=64, **split,
            strides=_STRIDES[suffix], dilations=_DILATED[suffix], multi_grid=(), contract_dilation=True,
            pretrained=f"open-mmlab://resnest{depth}",
        )
        for depth, stem_channels in ((50, 64), (101, 128), (200, 128))
        for suffix in _DILATED
    }  # fmt: skip


def _hrnet(
    source: str, base_channels: int, blocks: int = 4, modules: tuple[int, ...] = (1, 4, 3)
) -> dict[str, Any]:
    pretrained = f"open-mmlab://msra/hrnetv2_{source}"
    return dict(
        name="hrnet",
        base_channels=base_channels,
        modules=modules,
        blocks=blocks,
        stem_channels=64,
        pretrained=pretrained,
    )


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
BACKBONE_HELP = "r10 r18 r34 r50 r101 r152, each also as b (7x7 stem), d (V1d), s (wide stem); with -d8 -d16 -d32 -d16-mg124 or nothing (not dilated)"
