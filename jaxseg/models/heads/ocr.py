"""OCRNet's head (arXiv:1909.11065): the second stage of a cascade."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.layers import Layers
from jaxseg.ops import resize_concat


class OCRHead(nn.Module):
    """Each class is described by the average of its pixels, as the previous stage sees them; every pixel attends to these K.

    Features [B, h, w, C] (several maps are joined at the finest's size) and `previous` [B, h, w, K] to class scores [B, h, w, K].
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int | Sequence[int] = -1
    ocr_channels: int = 256

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, indices = (
            self.layer,
            [self.in_index] if isinstance(self.in_index, int) else self.in_index,
        )
        x = resize_concat([features[i] for i in indices], layer.align_corners)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        weights = nn.softmax(
            layer.resize(previous.astype(jnp.float32), x.shape[1:3]), axis=(1, 2)
        ).astype(x.dtype)
        regions = jnp.einsum("bhwk,bhwc->bkc", weights, x)[:, :, None, :]

        def project(y, name, channels=self.ocr_channels):
            return layer.conv_norm_act(channels, 1, name=f"object_context_block.{name}")(
                y, train=train
            )

        query = project(project(x, "query_project.0"), "query_project.1")
        key = project(project(regions, "key_project.0"), "key_project.1")[:, :, 0]
        value = project(regions, "value_project")[:, :, 0]
        similarity = (
            jnp.einsum("bhwc,bkc->bhwk", query, key, preferred_element_type=jnp.float32)
            * self.ocr_channels**-0.5
        )
        context = jnp.einsum(
            "bhwk,bkc->bhwc", nn.softmax(similarity, axis=-1).astype(x.dtype), value
        )
        context = project(context, "out_project", self.channels)
        x = project(jnp.concatenate([context, x], axis=-1), "bottleneck", self.channels)
        return layer.classify(x, self.num_classes, train=train), {}
