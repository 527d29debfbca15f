"""A small FCN on a narrow ResNet-10, trained on `shapes`: minutes on two CPU cores.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart

The head joins the maps at strides 4 (detail) and 8 (context).
"""

from jaxseg.config import experiment, parse_variant


def get_config():
    v = parse_variant("quickstart", "r10-d8_96x96_1k_shapes")
    return experiment(
        "quickstart",
        v,
        decode=dict(name="fcn", in_index=(0, 3), num_convs=1, channels=40, concat_input=False),
        changes=dict(
            steps=1200,
            eval_every=400,
            checkpoint_every=200,
            log_every=100,
            pretrained="",
            model=dict(backbone=dict(base_channels=16, stem_channels=24), dropout_rate=0.0),
            losses=dict(decode=dict(average="valid")),
            dataset=dict(ratio_range=(0.75, 1.5), cat_max_ratio=1.0),
            optimizer=dict(name="adamw", learning_rate=6e-3, weight_decay=1e-4),
            schedule=dict(name="cosine", end_value=0.0, warmup_steps=150, warmup_factor=0.04),
        ),
    )
