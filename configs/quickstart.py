"""A small DeepLabV3+ on the embedded `shapes` data set: minutes on two CPU cores.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from jaxseg.config import aspp, experiment, parse_variant


def get_config():
    v = parse_variant("quickstart", "r18_96x96_2k_shapes")
    return experiment(
        "quickstart",
        v,
        decode=aspp(v, separable=True, low_level_index=0, low_level_channels=16, channels=64, dilations=(1, 2, 4)),
        changes=dict(
            log_every=100,
            eval_every=1000,
            checkpoint_every=500,
            model=dict(backbone=dict(base_channels=16, stem_channels=16), dropout_rate=0.0),
            losses=dict(decode=dict(average="valid")),
            dataset=dict(ratio_range=(0.75, 1.33), cat_max_ratio=1.0),
            optimizer=dict(name="adamw", learning_rate=3e-3, weight_decay=1e-2),
            schedule=dict(name="cosine", end_value=0.0, warmup_steps=100, warmup_factor=0.01),
        ),
    )
