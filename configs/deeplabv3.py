"""DeepLabV3 (Chen et al. 2017).

python scripts/train.py --config=configs/deeplabv3.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import aspp, experiment, fcn_auxiliary, ohem_if_multi_grid, parse_variant


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    v = parse_variant("deeplabv3", variant)
    return experiment(
        "deeplabv3", v, decode=aspp(v), aux_0=fcn_auxiliary(), losses=ohem_if_multi_grid(v)
    )
