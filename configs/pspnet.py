"""PSPNet (Zhao et al. 2017).

python scripts/train.py --config=configs/pspnet.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    return experiment(
        "pspnet", variant, decode=dict(name="psp", pool_scales=(1, 2, 3, 6)), aux_0=fcn_auxiliary()
    )
