"""EMANet (Li et al. 2019).

    python scripts/train.py --config=configs/emanet.py:r50-d8_512x1024_80k_cityscapes

The convolution before the EM algorithm is never trained, so weight decay must not move it either.
"""

from jaxseg.config import experiment, fcn_auxiliary, parse_variant


def get_config(variant: str = "r50-d8_512x1024_80k_cityscapes"):
    v = parse_variant("emanet", variant)
    decode = dict(
        name="ema",
        channels=v.width(256),
        ema_channels=v.width(512),
        num_bases=64,
        num_stages=3,
        momentum=0.1,
    )
    frozen = dict(pattern="/ema_mid_conv/", learning_rate=0.0, weight_decay=0.0)
    return experiment(
        "emanet",
        v,
        decode=decode,
        aux_0=fcn_auxiliary(),
        changes=dict(optimizer=dict(multipliers=dict(frozen=frozen))),
    )
