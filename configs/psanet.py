"""PSANet (Zhao et al. 2018).

python scripts/train.py --config=configs/psanet.py:r50-d8_512x1024_40k_cityscapes
"""

from jaxseg.config import experiment, fcn_auxiliary, parse_variant


def get_config(variant: str = "r50-d8_512x1024_40k_cityscapes"):
    v = parse_variant("psanet", variant)
    mask_size = (66, 66) if v.dataset == "ade20k" else (97, 97)
    return experiment(
        "psanet", v, decode=dict(name="psa", mask_size=mask_size, shrink=2), aux_0=fcn_auxiliary()
    )
