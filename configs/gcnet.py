"""GCNet (Cao et al. 2019).

python scripts/train.py --config=configs/gcnet.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    return experiment("gcnet", variant, decode=dict(name="gc", ratio=0.25), aux_0=fcn_auxiliary())
