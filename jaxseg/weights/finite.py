"""Checks that a model's variables are finite."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxseg.errors import WeightsError

MAX_LISTED = 3  # names in a message


def not_finite(variables: Mapping[str, Any]) -> list[str]:
    """Return the 'a/b/c' paths of the arrays that hold a NaN or an infinity.

    Args:
        variables: {name: array}, or nested dicts of arrays.
    """
    flat = flatten_dict(dict(variables), sep="/")
    return [path for path, value in flat.items() if not np.isfinite(value).all()]


def check_finite(variables: Mapping[str, Any], source: str) -> None:
    """Refuse weights that hold a NaN or an infinity.

    With a single NaN, a model predicts class 0 for whole images.

    Args:
        variables: {name: array}, or nested dicts of arrays.
        source: The file or workdir of the weights, for the error.

    Raises:
        WeightsError: An array is not finite; the error names the arrays.
    """
    if broken := not_finite(variables):
        more = f" and {len(broken) - MAX_LISTED} more" if len(broken) > MAX_LISTED else ""
        raise WeightsError(
            f"NaN or infinite values in {', '.join(broken[:MAX_LISTED])}{more}",
            file=source,
            hint="use a checkpoint from before training diverged, or fetch the file again",
        )
