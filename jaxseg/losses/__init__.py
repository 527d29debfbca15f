"""Losses of segmentation: pure functions of class scores and labels, and `make_loss`, their sum.

Scores are [B, H, W, K], any float type, and computed in float32; labels are int [B, H, W], 255 =
ignore. With `axis_name`, sums over pixels are taken over all devices before they are divided, so
that N devices equal one; losses that select pixels (OHEM, Lovász) select per device, as
MMSegmentation does per GPU.
"""

from jaxseg.losses.build import LOSS as LOSS
from jaxseg.losses.build import LOSSES as LOSSES
from jaxseg.losses.build import Loss as Loss
from jaxseg.losses.build import check_losses as check_losses
from jaxseg.losses.build import defaults_of as defaults_of
from jaxseg.losses.build import find_loss as find_loss
from jaxseg.losses.build import make_loss as make_loss
from jaxseg.losses.build import options_of as options_of
from jaxseg.losses.pixels import cross_entropy as cross_entropy
from jaxseg.losses.pixels import focal as focal
from jaxseg.losses.pixels import ohem_mask as ohem_mask
from jaxseg.losses.pixels import pixel_cross_entropy as pixel_cross_entropy
from jaxseg.losses.pixels import point_cross_entropy as point_cross_entropy
from jaxseg.losses.pixels import se_loss as se_loss
from jaxseg.losses.regions import dice as dice
from jaxseg.losses.regions import lovasz as lovasz
from jaxseg.losses.regions import tversky as tversky

class_presence = se_loss  # its earlier name
