"""Rules that hold for a model's variables wherever they come from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxseg.errors import WeightsError

NAMED = 3  # how many names a message lists


def not_finite(variables: Mapping[str, Any]) -> list[str]:
    """The 'a/b/c' paths of the arrays that hold a NaN or an infinity.

    Args:
        variables: {name: array} or dicts of such in one another.
    """
    return [
        path
        for path, value in flatten_dict(dict(variables), sep="/").items()
        if not np.isfinite(value).all()
    ]


def check_finite(variables: Mapping[str, Any], source: str) -> None:
    """Refuse weights that are not numbers: a model with one NaN calls whole images class 0.

    Args:
        variables: {name: array} or dicts of such in one another.
        source: the file or workdir they come from, which the error names.

    Raises:
        WeightsError: with the names of the arrays that hold a NaN or an infinity.
    """
    if broken := not_finite(variables):
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise WeightsError(
            f"NaN or infinite values in {', '.join(broken[:NAMED])}{more}", file=source,
            hint="use a checkpoint from before training diverged, or fetch the file anew",
        )  # fmt: skip
