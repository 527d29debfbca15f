"""EMANet's head: expectation-maximisation attention (arXiv:1907.13426)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import einsum_f32, flatten_positions
from jaxseg.models.initializers import Initializer
from jaxseg.models.layers import Features, HeadOutput, Layers


def _unit(x: jax.Array) -> jax.Array:
    """Bases [B, C, N] of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


class EMAttention(nn.Module):
    """Reconstructs features from a few bases, which EM fits to each image without gradients.

    EM starts from the running bases [1, C, num_bases] in the collection 'bases'. Training moves
    them towards the mean of the batch's bases over all devices.

    Attributes:
        layer: The model's settings.
        num_bases: Number of bases.
        num_stages: Iterations of EM.
        momentum: Weight of the batch's bases in each update of the running bases.
    """

    layer: Layers
    num_bases: int
    num_stages: int
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map x [B, h, w, C] to the same shape."""
        channels = x.shape[-1]
        init = Initializer("normal", channels**-0.5)  # of length close to 1
        key = self.make_rng("params") if self.is_initializing() else None
        running = self.variable("bases", "bases", init, key, (1, channels, self.num_bases))
        flat = jax.lax.stop_gradient(flatten_positions(x).astype(jnp.float32))
        bases = jnp.broadcast_to(running.value, (x.shape[0], *running.value.shape[1:]))
        for _ in range(self.num_stages):
            share = jax.nn.softmax(einsum_f32("bnc,bck->bnk", flat, bases), axis=-1)
            weight = share / jnp.maximum(share.sum(1, keepdims=True), 1e-12)
            bases = _unit(einsum_f32("bnc,bnk->bck", flat, weight))
        frozen = "/".join(self.path) in self.layer.frozen_statistics
        if train and not frozen and not self.is_initializing():
            mean = bases.mean(0, keepdims=True)
            if self.layer.axis_name is not None:
                mean = jax.lax.pmean(mean, self.layer.axis_name)
            running.value = (1 - self.momentum) * running.value + self.momentum * _unit(mean)
        return einsum_f32("bck,bnk->bnc", bases, share).reshape(x.shape).astype(x.dtype)


class EMAHead(nn.Module):
    """Attention to a few bases found by EM, instead of to all other positions.

    The convolution before EM, `ema_mid_conv`, is not trained: it has no gradient, and weight decay
    should not be applied to it.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        ema_channels: Channels of the features that EM reconstructs.
        num_bases: Number of bases.
        num_stages: Iterations of EM.
        momentum: Weight of the batch's bases in each update of the running bases.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    ema_channels: int = 512
    num_bases: int = 64
    num_stages: int = 3
    momentum: float = 0.1

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K]."""
        layer, width = self.layer, self.ema_channels
        inputs = features[self.in_index]
        x = layer.conv_norm_act(width, 3, name="ema_in_conv")(inputs, train=train)
        mid = layer.conv_norm_act(width, 1, norm=False, activation="identity", name="ema_mid_conv")
        attention = EMAttention(
            layer, self.num_bases, self.num_stages, self.momentum, name="ema_module"
        )
        out = layer.conv_norm_act(width, 1, activation="identity", name="ema_out_conv")
        rebuilt = nn.relu(attention(mid(x, train=train), train=train))
        x = nn.relu(x + out(rebuilt, train=train))
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        x = jnp.concatenate([inputs.astype(x.dtype), x], axis=-1)
        x = layer.conv_norm_act(self.channels, 3, name="conv_cat")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}
