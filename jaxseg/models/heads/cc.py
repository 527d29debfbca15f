"""CCNet's head (arXiv:1811.11721)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import LearnedScale, conv_block_conv, einsum_f32, project
from jaxseg.models.layers import Features, HeadOutput, Layers


class CrissCrossAttention(nn.Module):
    """Attention from every position to its own column and row, added to the input.

    Weights are [B, h, w, h + w]; no (h w) x (h w) matrix is built. Each position counts only once,
    since it is left out of its column.

    Attributes:
        layer: The model's settings.
    """

    layer: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, h, w, C] to the same shape."""
        height = x.shape[1]
        channels = x.shape[-1]
        query = project(self.layer, x, channels // 8, "query_conv")
        key = project(self.layer, x, channels // 8, "key_conv")
        value = project(self.layer, x, channels, "value_conv")
        itself = jnp.eye(height, dtype=bool)[None, :, None, :]
        column = jnp.where(itself, -jnp.inf, einsum_f32("bhwc,biwc->bhwi", query, key))
        row = einsum_f32("bhwc,bhjc->bhwj", query, key)
        weights = jax.nn.softmax(jnp.concatenate([column, row], axis=-1), axis=-1)
        weights = weights.astype(value.dtype)
        context = jnp.einsum("bhwi,biwc->bhwc", weights[..., :height], value)
        context += jnp.einsum("bhwj,bhjc->bhwc", weights[..., height:], value)
        return x + LearnedScale(name="gamma")(context)


class CCHead(nn.Module):
    """Criss-cross attention repeated with the same weights: two passes connect all positions.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        recurrence: Number of passes.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    recurrence: int = 2

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        attention = CrissCrossAttention(self.layer, name="cca")

        def repeat(y: jax.Array) -> jax.Array:
            for _ in range(self.recurrence):
                y = attention(y)
            return y

        x = features[self.in_index]
        scores = conv_block_conv(
            self.layer, x, repeat, self.channels, self.num_classes, train=train
        )
        return scores, {}
