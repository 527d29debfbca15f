"""A segmentation network: backbone, neck and heads, composed."""

from collections.abc import Callable, Mapping

import jax
from flax import linen as nn

from jaxseg.models.layers import Layers


def head_order(names) -> list[str]:
    """Auxiliary heads, then the cascade's stages in order, then `decode`."""
    return sorted(
        names,
        key=lambda name: (
            name == "decode",
            name.startswith("stage_"),
            int(name.rpartition("_")[2]) if "_" in name else 0,
        ),
    )


def head_path(name: str, names) -> str:
    """Where MMSegmentation keeps a head's parameters: 'decode_head', 'decode_head.0', 'auxiliary_head', 'auxiliary_head.1', ..."""
    auxiliary, stages = (
        [n for n in names if n.startswith(prefix)] for prefix in ("aux_", "stage_")
    )
    if name.startswith("aux_"):
        return "auxiliary_head" if len(auxiliary) == 1 else f"auxiliary_head.{int(name[4:])}"
    if not stages:
        return "decode_head"
    return f"decode_head.{len(stages) if name == 'decode' else int(name[6:])}"


class Segmentor(nn.Module):
    """Normalised images [B, H, W, C] float32 to (logits [B, H, W, K] float32, out).

    `out` holds every head's scores at its own resolution ('decode', 'aux_0', 'stage_0', ...) and what heads add for their
    losses. `backbone`, `neck` and `heads` are module constructors that lack only a name. A `stage_*` head's scores are the
    `previous` of the next one.
    """

    backbone: Callable[..., nn.Module]
    heads: Mapping[str, Callable[..., nn.Module]]
    layer: Layers
    neck: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        features = self.backbone(name="backbone")(images.astype(self.layer.dtype), train=train)
        if self.neck is not None:
            features = self.neck(name="neck")(features, train=train)
        out, previous = {}, None
        for name in head_order(self.heads):
            head = self.heads[name](name=head_path(name, self.heads))
            out[name], extra = head(features, previous, train=train)
            out.update(extra)
            if not name.startswith("aux_"):
                previous = out[name]
        return self.layer.resize(out["decode"], images.shape[1:3]), out
