"""DeepLabV3+ (Chen et al. 2018).

python scripts/train.py --config=configs/deeplabv3plus.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import aspp, experiment, fcn_auxiliary, ohem_if_multi_grid, parse_variant


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    v = parse_variant("deeplabv3plus", variant)
    decode = aspp(v, separable=True, low_level_index=0, low_level_channels=v.width(48))
    return experiment(
        "deeplabv3plus", v, decode=decode, aux_0=fcn_auxiliary(), losses=ohem_if_multi_grid(v)
    )
