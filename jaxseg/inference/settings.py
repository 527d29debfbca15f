"""Test-time settings: the values of an experiment that inference reads."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxseg.config.schema import Experiment
from jaxseg.errors import ConfigError


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
    run = experiment.eval
    settings = TestSettings(
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
    _check(settings)
    return settings


def _pair(values: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = values
    return int(vertical), int(horizontal)


def _check(settings: TestSettings) -> None:
    """Refuse what an experiment holds that was put together without `config.resolve`."""
    if settings.mode not in ("whole", "slide"):
        raise ConfigError(
            f"config.eval.mode is {settings.mode!r}: choose 'whole' or 'slide'", field="eval.mode"
        )
    if settings.mode == "slide":
        _check_windows(settings.crop_size, settings.stride)
    if not settings.scales or min(settings.scales) <= 0:
        raise ConfigError(
            f"config.eval.scales is {settings.scales}: give one or more positive ratios, (1.0,) "
            "for none",
            field="eval.scales",
        )
    if settings.batch_size < 1:
        raise ConfigError(
            f"config.eval.batch_size is {settings.batch_size}: it must be 1 or more",
            field="eval.batch_size",
        )


def _check_windows(crop: tuple[int, int], stride: tuple[int, int]) -> None:
    if min(crop + stride) < 1:
        raise ConfigError(
            "config.eval.mode 'slide' needs crop_size and stride as (height, width) in pixels, not "
            f"{crop} and {stride}",
            field="eval.stride" if min(crop) > 0 else "eval.crop_size",
        )
    if any(step > side for step, side in zip(stride, crop)):
        raise ConfigError(
            f"config.eval.stride {stride} is larger than config.eval.crop_size {crop}: pixels "
            "between the windows would be left out",
            field="eval.stride",
        )
