"""DANet (Fu et al. 2018).

    python scripts/train.py --config=configs/danet.py:r50-d8_512x1024_40k_cityscapes

Three losses of equal weight: the fused scores, and each attention's own.
"""

from jaxseg.config import cross_entropy, experiment, fcn_auxiliary, parse_variant


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    v = parse_variant("danet", variant)
    losses = dict(pam=cross_entropy(), cam=cross_entropy())
    return experiment(
        "danet",
        v,
        decode=dict(name="da", pam_channels=v.width(64)),
        aux_0=fcn_auxiliary(),
        losses=losses,
    )
