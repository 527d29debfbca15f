"""Adapt the weights of a model for RGB images to images with other channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import WeightsError


def adapt_channels(loaded: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Adapt the variables of a model for RGB images to a model for images with C channels.

    The first kernel [h, w, 3, O] becomes [h, w, C, O]. Its channels are copies of red, green and
    blue in turn, scaled so that the response to an image with equal channels does not change.

    Args:
        loaded: Variables of the model for RGB images.
        fresh: Variables of the model for images with C channels.

    Returns:
        The adapted variables.

    Raises:
        WeightsError: The number of channels does not affect exactly one variable, a kernel.
    """
    old, new = (flatten_dict(dict(tree), sep="/") for tree in (loaded, fresh))
    differ = [path for path in new if np.shape(old[path]) != np.shape(new[path])]
    if len(differ) != 1 or np.ndim(new[differ[0]]) != 4:
        raise WeightsError(
            f"{len(differ)} variables depend on the number of channels "
            f"({', '.join(differ[:3])}, ...): RGB weights cannot start this backbone",
            field="dataset.channels",
        )
    kernel = np.asarray(old[differ[0]])
    channels = np.shape(new[differ[0]])[2]
    share = np.zeros((channels, 3), kernel.dtype)  # of each colour in each channel
    for color in range(3):
        takers = [c for c in range(channels) if c % 3 == color] or range(channels)
        share[takers, color] = 1 / len(takers)
    adapted = {differ[0]: np.einsum("hwio,ci->hwco", kernel, share)}
    return unflatten_dict(old | adapted, sep="/")
