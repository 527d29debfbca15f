"""OCRNet (Yuan et al. 2020).

    python scripts/train.py --config=configs/ocrnet.py:hr18_512x1024_40k_cityscapes

A cascade: an FCN's classes (stage_0, loss weight 0.4) become the regions that the decode head
attends to.
"""

from jaxseg.config import experiment, fcn_auxiliary, joined_fcn, parse_variant


def get_config(variant: str = "hr18_512x1024_40k_cityscapes"):
    v = parse_variant("ocrnet", variant)
    return experiment(
        "ocrnet",
        v,
        stage_0=joined_fcn() if v.hrnet else fcn_auxiliary(channels=v.width(256)),
        decode=dict(
            name="ocr",
            in_index=(0, 1, 2, 3) if v.hrnet else -1,
            channels=v.width(512),
            ocr_channels=v.width(256),
        ),
        losses=dict(stage_0=dict(weight=0.4)),
        changes=dict(model=dict(dropout_rate=0.0)) if v.hrnet else {},
    )
