"""CCNet's head (arXiv:1811.11721)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import LearnedScale, conv_block_conv, einsum_f32, project
from jaxseg.models.layers import Layers


class CrissCrossAttention(nn.Module):
    """x plus, at every position, a mean over its own column and row: [B, h, w, C] -> [B, h, w, C].

    Weights are [B, h, w, h + w]; no (h w) x (h w) matrix. A position counts once: its column leaves it out.
    """

    layer: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        height, channels = x.shape[1], x.shape[-1]
        query = project(self.layer, x, channels // 8, "query_conv")
        key = project(self.layer, x, channels // 8, "key_conv")
        value = project(self.layer, x, channels, "value_conv")
        itself = jnp.eye(height, dtype=bool)[None, :, None, :]
        column = jnp.where(itself, -jnp.inf, einsum_f32("bhwc,biwc->bhwi", query, key))
        row = einsum_f32("bhwc,bhjc->bhwj", query, key)
        weights = jax.nn.softmax(jnp.concatenate([column, row], axis=-1), axis=-1).astype(
            value.dtype
        )
        context = jnp.einsum("bhwi,biwc->bhwc", weights[..., :height], value)
        context += jnp.einsum("bhwj,bhjc->bhwc", weights[..., height:], value)
        return x + LearnedScale(name="gamma")(context)


class CCHead(nn.Module):
    """Criss-cross attention applied `recurrence` times with the same weights: two passes connect every pair of positions.

    Features [B, h, w, C] to class scores [B, h, w, K].
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    recurrence: int = 2

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        attention = CrissCrossAttention(self.layer, name="cca")

        def repeat(y: jax.Array) -> jax.Array:
            for _ in range(self.recurrence):
                y = attention(y)
            return y

        x = features[self.in_index]
        return conv_block_conv(
            self.layer, x, repeat, self.channels, self.num_classes, train=train
        ), {}
