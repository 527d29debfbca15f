"""DNLNet (Yin et al. 2020).

    python scripts/train.py --config=configs/dnl.py:r50-d8_512x1024_40k_cityscapes

The published 769x769 runs of 80k steps kept weight decay off the attention's queries and keys, the
others did not.
"""

from jaxseg.config import experiment, fcn_auxiliary, parse_variant


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    v = parse_variant("dnl", variant)
    attention = dict(pattern="/(theta|phi)/", learning_rate=1.0, weight_decay=0.0)
    multipliers = (
        dict(attention=attention) if v.crop_size == (769, 769) and v.steps == 80000 else {}
    )
    decode = dict(name="dnl", reduction=2, temperature=0.05)
    return experiment(
        "dnl",
        v,
        decode=decode,
        aux_0=fcn_auxiliary(),
        changes=dict(optimizer=dict(multipliers=multipliers)),
    )
