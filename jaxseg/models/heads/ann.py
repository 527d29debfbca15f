"""ANN's head: asymmetric non-local networks (arXiv:1908.07678)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import attend, flatten_positions, project
from jaxseg.models.initializers import ZEROS
from jaxseg.models.layers import Layers
from jaxseg.models.pooling import adaptive_avg_pool


class PyramidAttention(nn.Module):
    """Every position of `high` [B, h, w, C] attends to a pyramid of pools of `low` [B, h, w, L]: [B, h, w, C].

    `shared`: one projection makes queries and keys, called for each, so that its running statistics move twice a step.
    """

    layer: Layers
    channels: int
    pool_scales: Sequence[int]
    shared: bool = False

    @nn.compact
    def __call__(self, low: jax.Array, high: jax.Array, *, train: bool) -> jax.Array:
        layer = self.layer
        make_key = layer.conv_norm_act(self.channels, 1, name="key_project")
        make_query = (
            make_key if self.shared else layer.conv_norm_act(self.channels, 1, name="query_project")
        )
        query = flatten_positions(make_query(high, train=train))
        key, value = make_key(low, train=train), project(layer, low, self.channels, "value_project")
        key, value = (
            jnp.concatenate(
                [flatten_positions(adaptive_avg_pool(x, s)) for s in self.pool_scales], axis=1
            )
            for x in (key, value)
        )
        context = attend(query, key, value, scale=self.channels**-0.5).reshape(
            *high.shape[:3], self.channels
        )
        return layer.conv(high.shape[-1], 1, use_bias=True, kernel_init=ZEROS, name="out_project")(
            context
        )


class ANNHead(nn.Module):
    """Non-local attention made cheap by pooling what is attended to: first fuses two backbone maps, then refines the result.

    Features [B, h, w, C], two maps of one size, to class scores [B, h, w, K].
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: Sequence[int] = (-2, -1)
    project_channels: int = 256
    key_pool_scales: Sequence[int] = (1, 3, 6, 8)

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, options = self.layer, (self.layer, self.project_channels, self.key_pool_scales)
        low, high = (features[i].astype(layer.dtype) for i in self.in_index)
        context = PyramidAttention(*options, name="fusion.stages.0")(low, high, train=train)
        x = jnp.concatenate([context, high], axis=-1)
        x = layer.conv_norm_act(high.shape[-1], 1, activation="identity", name="fusion.bottleneck")(
            x, train=train
        )
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(
            layer.dropout(x, train=train), train=train
        )
        context = PyramidAttention(*options, shared=True, name="context.stages.0")(
            x, x, train=train
        )
        x = jnp.concatenate([context, x], axis=-1)
        x = layer.conv_norm_act(self.channels, 1, name="context.bottleneck")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}
