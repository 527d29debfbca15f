"""The segmentation model: a backbone, an optional neck and heads."""

from collections.abc import Callable, Iterable, Mapping

import jax
from flax import linen as nn

from jaxseg.models.layers import Layers


def head_order(names: Iterable[str]) -> list[str]:
    """Sort heads into the order of computation: auxiliary heads, a cascade's stages, `decode`."""
    return sorted(names, key=_position)


def _position(name: str) -> tuple[bool, bool, int]:
    number = int(name.rpartition("_")[2]) if "_" in name else 0
    return name == "decode", name.startswith("stage_"), number


def head_path(name: str, names: Iterable[str]) -> str:
    """Return the module under which MMSegmentation stores a head's parameters.

    Args:
        name: The head, 'decode', 'aux_0', 'stage_0', ...
        names: All heads of the model.

    Returns:
        'decode_head' or, in a cascade, 'decode_head.0', ...; 'auxiliary_head' or, for several,
        'auxiliary_head.0', ...
    """
    names = list(names)
    if name.startswith("aux_"):
        several = sum(other.startswith("aux_") for other in names) > 1
        return f"auxiliary_head.{int(name[4:])}" if several else "auxiliary_head"
    stages = sum(other.startswith("stage_") for other in names)
    if stages == 0:
        return "decode_head"
    return f"decode_head.{stages if name == 'decode' else int(name[6:])}"


class Segmentor(nn.Module):
    """A model that maps normalised images to class scores.

    Modules are given as constructors that lack only a name. A backbone maps images to a list of
    feature maps, finest first; a neck maps such a list to another. A head maps (features, previous)
    to its scores and a dict of further outputs; `previous` holds the scores of a cascade's earlier
    stage.

    Attributes:
        backbone: Constructor of the backbone.
        heads: Constructors of the heads: 'decode', 'aux_0', ..., 'stage_0', ...
        layer: The model's settings.
        neck: Constructor of the neck; None for none.
    """

    backbone: Callable[..., nn.Module]
    heads: Mapping[str, Callable[..., nn.Module]]
    layer: Layers
    neck: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compute the scores of images.

        Args:
            images: Normalised images [B, H, W, C], float32.
            train: Whether to train: batch statistics and dropout.

        Returns:
            Logits [B, H, W, K], float32, and a dict of outputs: the scores [B, h, w, K] of every
            head at its own resolution, and further outputs that heads provide for their losses.
        """
        features = self.backbone(name="backbone")(images.astype(self.layer.dtype), train=train)
        if self.neck is not None:
            features = self.neck(name="neck")(features, train=train)
        out: dict[str, jax.Array] = {}
        previous = None
        for name in head_order(self.heads):
            head = self.heads[name](name=head_path(name, self.heads))
            out[name], extra = head(features, previous, train=train)
            out.update(extra)
            if not name.startswith("aux_"):
                previous = out[name]
        return self.layer.resize(out["decode"], images.shape[1:3]), out
