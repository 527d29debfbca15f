"""FCN (Long et al. 2015).

    python scripts/train.py --config=configs/fcn.py:r50-d8_512x1024_40k_cityscapes

With an HRNet backbone all four maps are joined, without an auxiliary head or dropout; d6: dilation
6 in both heads.
"""

from jaxseg.config import ConfigError, experiment, fcn_auxiliary, joined_fcn, parse_variant


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    v = parse_variant("fcn", variant)
    if v.hrnet and v.d6:
        raise ConfigError(
            f"'d6' in '{variant}' is a variant of the dilated backbones, not of HRNet."
        )
    if v.hrnet:
        return experiment("fcn", v, decode=joined_fcn(), changes=dict(model=dict(dropout_rate=0.0)))
    dilation = 6 if v.d6 else 1
    return experiment(
        "fcn", v, decode=dict(name="fcn", dilation=dilation), aux_0=fcn_auxiliary(dilation=dilation)
    )
