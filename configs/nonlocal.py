"""Non-local network (Wang et al. 2017).

python scripts/train.py --config=configs/nonlocal.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    return experiment(
        "nonlocal", variant, decode=dict(name="non_local", reduction=2), aux_0=fcn_auxiliary()
    )
