"""Segmentation losses: pure functions of class scores and labels, and `make_loss`, their sum.

Scores are [B, H, W, K] of any float type; losses compute in float32. Labels are int [B, H, W], 255
= ignore. With `axis_name`, losses sum over the pixels of all devices before they divide, so that N
devices give the same result as one. Losses that select pixels (OHEM, Lovász) select per device, as
MMSegmentation does per GPU.
"""

from jaxseg.losses.build import (
    LOSS,
    LOSSES,
    Loss,
    check_losses,
    defaults_of,
    find_loss,
    make_loss,
    options_of,
)
from jaxseg.losses.pixels import (
    cross_entropy,
    focal,
    ohem_mask,
    pixel_cross_entropy,
    point_cross_entropy,
    se_loss,
)
from jaxseg.losses.regions import dice, lovasz, tversky

__all__ = [
    "LOSS",
    "LOSSES",
    "Loss",
    "check_losses",
    "cross_entropy",
    "defaults_of",
    "dice",
    "find_loss",
    "focal",
    "lovasz",
    "make_loss",
    "ohem_mask",
    "options_of",
    "pixel_cross_entropy",
    "point_cross_entropy",
    "se_loss",
    "tversky",
]

class_presence = se_loss  # the name in the first edition
