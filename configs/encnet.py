"""EncNet (Zhang et al. 2018).

    python scripts/train.py --config=configs/encnet.py:r50-d8_512x1024_40k_cityscapes

A second loss asks which classes are in the image.
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    losses = dict(presence=dict(name="se_loss", target="", weight=0.2))
    return experiment(
        "encnet",
        variant,
        decode=dict(name="enc", num_codes=32),
        aux_0=fcn_auxiliary(),
        losses=losses,
    )
