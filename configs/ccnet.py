"""CCNet (Huang et al. 2018).

python scripts/train.py --config=configs/ccnet.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    return experiment("ccnet", variant, decode=dict(name="cc", recurrence=2), aux_0=fcn_auxiliary())
