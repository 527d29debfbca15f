"""Advice on an experiment, logged before its first step."""

import math

from jaxseg import zoo
from jaxseg.config.schema import Experiment, NormConfig

SETTLED = 1e-3  # negligible share of the initial values in batch norm's running statistics


def pretrained_hint(experiment: Experiment) -> str:
    """Return a hint if only the published run started from pretrained weights, else ''."""
    pretrained = experiment.pretrained
    if experiment.init_from or not pretrained:
        return ""
    file = pretrained.rpartition("/")[2]
    name = next((name for name in zoo.IMAGENET if file.startswith(name)), "")
    fetch = f"; python scripts/convert_mmseg.py --download={name} fetches it" if name else ""
    return (
        f"starting from random weights; the published run began with {pretrained} "
        f"(give the file as config.init_from{fetch})"
    )


def batch_norm_warmup_warning(experiment: Experiment) -> str:
    """Return a warning if a run is too short for batch norm's running statistics, else ''.

    Evaluation normalises by these statistics, which start at mean 0 and variance 1.
    """
    momentum, steps = experiment.model.norm.momentum, experiment.steps
    left = momentum**steps
    if left < SETTLED:
        return ""
    needed = math.ceil(math.log(SETTLED) / math.log(momentum))
    usual = NormConfig().momentum
    is_enough = usual < momentum and usual**steps < SETTLED
    quicker = f", or set config.model.norm.momentum={usual}" if is_enough else ""
    return (
        f"the running statistics of batch norm will still contain {100 * left:.1f}% of their "
        f"initial values after {steps} steps (momentum {momentum}), and evaluation may be far "
        f"worse than the loss suggests: train for {needed} steps or more{quicker}"
    )
