"""LR-ASPP (Howard et al. 2019) on MobileNetV3.

    python scripts/train.py --config=configs/lraspp.py:m-v3-d8_512x1024_320k_cityscapes

Images of less than 385 pixels need --config.model.heads.decode.small_input=global.
"""

from jaxseg.config import experiment


def get_config(variant: str = "m-v3-d8_512x1024_320k_cityscapes"):
    return experiment(
        "lraspp",
        variant,
        decode=dict(
            name="lraspp",
            in_index=(0, 1, -1),
            channels=128,
            branch_channels=(32, 64),
            pool_size=49,
            pool_stride=(16, 20),
            small_input="error",
        ),
        batch_size=16,
        changes=dict(model=dict(norm=dict(epsilon=1e-3))),
    )
