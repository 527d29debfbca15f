"""Fast-SCNN (Poudel et al. 2019).

python scripts/train.py --config=configs/fast_scnn.py:512x1024_160k_cityscapes
"""

from jaxseg.config import cross_entropy, experiment, fcn_auxiliary


def get_config(variant: str = "512x1024_160k_cityscapes"):
    return experiment(
        "fast_scnn",
        variant,
        backbone=dict(name="fast_scnn"),
        decode=dict(name="fcn", in_index=-1, channels=128, concat_input=False, separable=True),
        aux_0=fcn_auxiliary(in_index=-2, channels=32),
        aux_1=fcn_auxiliary(in_index=-3, channels=32),
        losses={
            key: cross_entropy(weight, sigmoid=True)
            for key, weight in (("decode", 1.0), ("aux_0", 0.4), ("aux_1", 0.4))
        },
        batch_size=32,
        changes=dict(
            optimizer=dict(learning_rate=0.12, weight_decay=4e-5),
            model=dict(norm=dict(momentum=0.99)),
        ),
    )
