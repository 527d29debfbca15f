"""APCNet (He et al. 2019).

python scripts/train.py --config=configs/apcnet.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    return experiment(
        "apcnet", variant, decode=dict(name="apc", pool_scales=(1, 2, 3, 6)), aux_0=fcn_auxiliary()
    )
