"""ANN's head: asymmetric non-local networks (arXiv:1908.07678)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import attend, flatten_positions, project
from jaxseg.models.initializers import ZEROS
from jaxseg.models.layers import Features, HeadOutput, Layers
from jaxseg.models.pooling import adaptive_avg_pool


class PyramidAttention(nn.Module):
    """Attention from every position of one map to a pyramid of averages of another.

    Attributes:
        layer: The model's settings.
        channels: Channels of queries, keys and values.
        pool_scales: Heights and widths of the square pooling grids.
        shared: Whether queries and keys share a projection, whose running statistics are then
            updated twice per step.
    """

    layer: Layers
    channels: int
    pool_scales: Sequence[int]
    shared: bool = False

    @nn.compact
    def __call__(self, low: jax.Array, high: jax.Array, *, train: bool) -> jax.Array:
        """Attend from `high` [B, h, w, C] to `low` [B, h', w', L]: [B, h, w, C]."""
        layer = self.layer
        make_key = layer.conv_norm_act(self.channels, 1, name="key_project")
        make_query = make_key
        if not self.shared:
            make_query = layer.conv_norm_act(self.channels, 1, name="query_project")
        query = flatten_positions(make_query(high, train=train))
        key = self._pyramid(make_key(low, train=train))
        value = self._pyramid(project(layer, low, self.channels, "value_project"))
        context = attend(query, key, value, scale=self.channels**-0.5)
        context = context.reshape(*high.shape[:3], self.channels)
        out = layer.conv(high.shape[-1], 1, use_bias=True, kernel_init=ZEROS, name="out_project")
        return out(context)

    def _pyramid(self, x: jax.Array) -> jax.Array:
        """Pools of x [B, h, w, C] as a sequence [B, M, C]."""
        pools = [flatten_positions(adaptive_avg_pool(x, s)) for s in self.pool_scales]
        return jnp.concatenate(pools, axis=1)


class ANNHead(nn.Module):
    """Non-local attention that is cheap because keys and values are pooled.

    It first fuses two feature maps of equal size, then refines the result.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the refined features.
        layer: The model's settings.
        in_index: The two feature maps to read: first for keys and values, then for queries.
        project_channels: Channels of queries, keys and values.
        key_pool_scales: Heights and widths of the square pooling grids.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: Sequence[int] = (-2, -1)
    project_channels: int = 256
    key_pool_scales: Sequence[int] = (1, 3, 6, 8)

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C_i] to class scores [B, h, w, K]."""
        layer = self.layer
        options = (layer, self.project_channels, self.key_pool_scales)
        low, high = (features[i].astype(layer.dtype) for i in self.in_index)
        context = PyramidAttention(*options, name="fusion.stages.0")(low, high, train=train)
        x = jnp.concatenate([context, high], axis=-1)
        fuse = layer.conv_norm_act(
            high.shape[-1], 1, activation="identity", name="fusion.bottleneck"
        )
        x = layer.dropout(fuse(x, train=train), train=train)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        refine = PyramidAttention(*options, shared=True, name="context.stages.0")
        x = jnp.concatenate([refine(x, x, train=train), x], axis=-1)
        x = layer.conv_norm_act(self.channels, 1, name="context.bottleneck")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}
