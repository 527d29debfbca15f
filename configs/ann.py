"""ANN (Zhu et al. 2019).

python scripts/train.py --config=configs/ann.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary, parse_variant


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    v = parse_variant("ann", variant)
    decode = dict(
        name="ann", in_index=(2, 3), project_channels=v.width(256), key_pool_scales=(1, 3, 6, 8)
    )
    return experiment("ann", v, decode=decode, aux_0=fcn_auxiliary())
