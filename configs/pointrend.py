"""PointRend (Kirillov et al. 2020).

    python scripts/train.py --config=configs/pointrend.py:r50_512x1024_80k_cityscapes

A cascade: Semantic FPN's head (stage_0), then single points classified anew where it is unsure.
"""

from jaxseg.config import experiment


def get_config(variant: str = "r50_512x1024_80k_cityscapes"):
    return experiment(
        "pointrend",
        variant,
        neck=dict(name="fpn", channels=256),
        stage_0=dict(name="fpn", in_index=(0, 1, 2, 3), feature_strides=(), channels=128),
        decode=dict(
            name="point",
            in_index=(0,),
            channels=256,
            num_fcs=3,
            num_points=2048,
            oversample=3.0,
            importance=0.75,
            subdivision_steps=2,
            subdivision_points=8196,
        ),
        losses=dict(decode=dict(name="point_cross_entropy", target="point_logits")),
        changes=dict(
            model=dict(dropout_rate=0.0), schedule=dict(warmup_steps=200, warmup_factor=0.1)
        ),
    )
