"""The grammar of variants such as `r50-d8_512x1024_40k_cityscapes`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxseg.config.defaults import BACKBONE_HELP, BACKBONES, DATASETS
from jaxseg.errors import ConfigError
from jaxseg.registry import check_name

RECIPES = ("fp16", "rsb_adamw", "scratch")
PATTERN = re.compile(
    r"(?:(?P<model>.*)_)?(?P<h>\d+)x(?P<w>\d+)_(?P<k>\d+)k(?:_b(?P<batch>\d+))?_(?P<dataset>.+)"
)
GRAMMAR = """\
A variant is  [d6_][<backbone>][_fp16|_rsb_adamw|_scratch]_<H>x<W>_<N>k[_b<batch>]_<dataset>
  for example  r50-d8_512x1024_40k_cityscapes  or  r18-d8_240x320_2k_folder
  d6         dilation 6 in FCN's heads
  <backbone> {backbones}
             (fast_scnn and cgnet have no backbone part)
  fp16, rsb_adamw, scratch   the published recipes of these names
  <H>x<W>    training crop, height by width
  <N>k       thousands of steps
  b16        global batch (learning rate scaled with it)
  <dataset>  {datasets}
Any field can be overridden:
  --config.optimizer.learning_rate=0.02 --config.dataset.root=/data/mine"""


def grammar() -> str:
    """Return the grammar as help text."""
    others = " ".join(name for name, entry in BACKBONES.items() if entry["name"] != "resnet")
    return GRAMMAR.format(
        backbones=f"{BACKBONE_HELP} {others}".rstrip(), datasets=" ".join(DATASETS)
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """A parsed variant.

    Attributes:
        text: The whole variant.
        d6: Whether FCN's heads use dilation 6.
        backbone: Key of `defaults.BACKBONES`, "" if the method has its own backbone.
        recipe: One of RECIPES, or "".
        crop_size: (height, width) in pixels.
        steps: Training steps.
        batch_size: Global batch size, 0 if the variant names none.
        dataset: Key of `defaults.DATASETS`.
    """

    text: str
    d6: bool
    backbone: str
    recipe: str
    crop_size: tuple[int, int]
    steps: int
    batch_size: int
    dataset: str

    @property
    def hrnet(self) -> bool:
        """Whether the backbone is an HRNet; its heads concatenate all maps and use no dropout."""
        return BACKBONES.get(self.backbone, {}).get("name") == "hrnet"

    @property
    def output_stride(self) -> int:
        """Output stride in the name of the backbone; 32 if the name has none."""
        found = re.search(r"-d(8|16|32)", self.backbone)
        return int(found[1]) if found else 32

    @property
    def trained_on(self) -> str:
        """The data set to train on; it differs from `dataset` for sets without training data."""
        return DATASETS[self.dataset].get("train_on", self.dataset)

    def width(self, channels: int) -> int:
        """Return the channels of a head: a quarter of `channels` on ResNets below 50 layers."""
        small = BACKBONES.get(self.backbone, {}).get("depth", 50) < 50
        return channels // 4 if small else channels


def parse_variant(method: str, text: str, backbones: Mapping[str, Any] | None = None) -> Variant:
    """Parse a variant.

    Args:
        method: Name of the config file, for messages.
        text: The variant.
        backbones: Replaces the table of backbones; {} if the method has its own backbone.

    Returns:
        The parsed variant.

    Raises:
        ConfigError: The variant is invalid; the error names the wrong part, the possible values and
            the nearest.
    """
    backbones = BACKBONES if backbones is None else backbones
    found = PATTERN.fullmatch(text or "")
    if not found:
        raise ConfigError(
            f"Cannot read the variant '{text}' of {method}: after the model come "
            f"<H>x<W>_<N>k_<dataset>.\n{grammar()}",
            field="variant",
        )
    parts = (found["model"] or "").split("_")
    d6 = parts[0] == "d6"
    parts = [part for part in parts[1 if d6 else 0 :] if part]
    backbone = parts.pop(0) if parts and backbones else ""
    recipe = "_".join(parts)
    try:
        if backbones:
            check_name(backbones, backbone, "backbone")
        if recipe:
            what = "recipe" if backbones else f"recipe ({method} has its own backbone)"
            check_name(RECIPES, recipe, what)
        check_name(DATASETS, found["dataset"], "data set")
    except ConfigError as error:
        problem = f"Variant '{text}' of {method}: {str(error).split(' Known:')[0]}\n{grammar()}"
        raise ConfigError(problem, field="variant") from None
    if d6 and method != "fcn":
        raise ConfigError(
            f"'d6' in '{text}' is a variant of fcn, not of {method}.", field="variant"
        )
    crop_size = int(found["h"]), int(found["w"])
    steps = int(found["k"]) * 1000
    if not all((*crop_size, steps)) or found["batch"] == "0":
        raise ConfigError(f"Crop, steps and batch in '{text}' must be positive.", field="variant")
    batch_size = int(found["batch"] or 0)
    return Variant(text, d6, backbone, recipe, crop_size, steps, batch_size, found["dataset"])
