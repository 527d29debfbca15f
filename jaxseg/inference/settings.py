"""Test-time settings: the fields of an experiment that inference uses."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxseg.config.resolve import check_eval
from jaxseg.config.schema import Experiment


class TestSettings(NamedTuple):
    """Settings of inference; `make_settings` takes them from an experiment.

    Attributes:
        mean: Mean per channel, in the units of the images.
        std: Standard deviation per channel.
        align_corners: How to resize logits, see `jaxseg.ops.resize_bilinear`.
        mode: "whole" images or "slide" for overlapping windows.
        crop_size: (height, width) of a window in pixels.
        stride: (vertical, horizontal) distance between windows in pixels.
        scales: Test-time scales, relative to the size after the test resize.
        flip: Whether to average with the mirror image.
        batch_size: Number of images or windows per device in one forward pass.
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
        """Number of forward passes per image; with several, their probabilities are averaged."""
        return len(self.scales) * (2 if self.flip else 1)


TestSettings.__test__ = False  # type: ignore[attr-defined] # not a test for pytest


def make_settings(experiment: Experiment) -> TestSettings:
    """Take the test-time settings from an experiment.

    Args:
        experiment: Provides `eval`, the mean and std of `dataset`, and `model.align_corners`.

    Returns:
        The settings.

    Raises:
        ConfigError: A value of `eval` is out of range, or windows do not cover every pixel.
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
