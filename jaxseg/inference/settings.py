"""Test-time settings: the values of an experiment that inference reads."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxseg.config.resolve import check_eval
from jaxseg.config.schema import Experiment


class TestSettings(NamedTuple):
    """How a model is run on images; `make_settings` takes the values from an experiment.

    Attributes:
        mean: Mean per channel, in the units of the images.
        std: Standard deviation per channel.
        align_corners: How logits are resized, see `jaxseg.ops.resize_bilinear`.
        mode: "whole" images or "slide" for overlapping windows.
        crop_size: (height, width) of a window in pixels.
        stride: (vertical, horizontal) distance of windows in pixels.
        scales: Test-time scales, relative to the size after the test resize.
        flip: Average with the mirror image.
        batch_size: Images, or windows, in one forward pass on one device.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    align_corners: bool = False
    mode: str = "whole"
    crop_size: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (0, 0)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 1

    @property
    def num_views(self) -> int:
        """Number of forward passes per image: logits of one, averaged probabilities of several."""
        return len(self.scales) * (2 if self.flip else 1)


TestSettings.__test__ = False  # type: ignore[attr-defined] # no test class for pytest


def make_settings(experiment: Experiment) -> TestSettings:
    """Take the test-time settings from an experiment.

    Args:
        experiment: Its `eval`, the image statistics of its `dataset` and its `model.align_corners`
            are read.

    Raises:
        ConfigError: A value of `eval` is out of range, or the stride leaves pixels out.
    """
    check_eval(experiment.eval)
    run = experiment.eval
    return TestSettings(
        mean=tuple(float(value) for value in experiment.dataset.image_mean),
        std=tuple(float(value) for value in experiment.dataset.image_std),
        align_corners=bool(experiment.model.align_corners),
        mode=run.mode,
        crop_size=_pair(run.crop_size),
        stride=_pair(run.stride),
        scales=tuple(float(scale) for scale in run.scales),
        flip=bool(run.flip),
        batch_size=int(run.batch_size),
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = values
    return int(vertical), int(horizontal)
