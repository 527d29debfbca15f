"""CGNet (Wu et al. 2018).

    python scripts/train.py --config=configs/cgnet.py:680x680_60k_cityscapes

The published 680x680 run uses half the batch and neither photometric distortion nor a limit on a
crop's largest class.
"""

from jaxseg.config import experiment, parse_variant

CITYSCAPES_WEIGHTS = (
    2.5959933,
    6.7415504,
    3.5354059,
    9.8663225,
    9.690899,
    9.369352,
    10.289121,
    9.953208,
    4.3097677,
    9.490387,
    7.674431,
    9.396905,
    10.347791,
    6.3927646,
    10.226669,
    10.241062,
    10.280587,
    10.396974,
    10.055647,
)


def get_config(variant: str = "680x680_60k_cityscapes"):
    v = parse_variant("cgnet", variant, {})
    square = v.crop_size == (680, 680)
    return experiment(
        "cgnet",
        v,
        backbone=dict(
            name="cgnet",
            widths=(32, 64, 128),
            blocks=(3, 21),
            dilations=(2, 4),
            reduction_factors=(8, 16),
        ),
        decode=dict(name="fcn", in_index=-1, channels=256, num_convs=0, concat_input=False),
        losses=dict(
            decode=dict(class_weight=CITYSCAPES_WEIGHTS if v.trained_on == "cityscapes" else ())
        ),
        batch_size=16 if square else 32,
        changes=dict(
            eval_every=v.steps // 15,
            checkpoint_every=v.steps // 15,
            model=dict(dropout_rate=0.0, norm=dict(epsilon=1e-3)),
            dataset=dict(
                image_mean=(72.39239876, 82.90891754, 73.15835921), image_std=(1.0, 1.0, 1.0)
            )
            | (dict(photometric=False, cat_max_ratio=1.0) if square else {}),
            optimizer=dict(name="adam", learning_rate=1e-3),
        ),
    )
