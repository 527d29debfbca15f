"""DMNet (He et al. 2019).

python scripts/train.py --config=configs/dmnet.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    return experiment(
        "dmnet", variant, decode=dict(name="dm", filter_sizes=(1, 3, 5, 7)), aux_0=fcn_auxiliary()
    )
