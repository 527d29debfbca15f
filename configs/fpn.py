"""Semantic FPN (Kirillov et al. 2019).

python scripts/train.py --config=configs/fpn.py:r50_512x1024_80k_cityscapes
"""

from jaxseg.config import experiment


def get_config(variant: str = "r50_512x1024_80k_cityscapes"):
    decode = dict(name="fpn", in_index=(0, 1, 2, 3), feature_strides=(), channels=128)
    return experiment("fpn", variant, neck=dict(name="fpn", channels=256), decode=decode)
