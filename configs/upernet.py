"""UPerNet (Xiao et al. 2018).

python scripts/train.py --config=configs/upernet.py:r50_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50_512x1024_40k_cityscapes"):
    decode = dict(name="uper", in_index=(0, 1, 2, 3), pool_scales=(1, 2, 3, 6), channels=512)
    return experiment("upernet", variant, decode=decode, aux_0=fcn_auxiliary(channels=256))
