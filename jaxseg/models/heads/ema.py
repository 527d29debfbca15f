"""EMANet's head: expectation-maximisation attention (arXiv:1907.13426)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import einsum_f32, flatten_positions
from jaxseg.models.initializers import Initializer
from jaxseg.models.layers import Layers


def _unit(x: jax.Array) -> jax.Array:
    """x [B, C, N] with columns (axis 1) of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


class EMAttention(nn.Module):
    """x [B, h, w, C] rebuilt from a few bases that the EM algorithm fits to each image: [B, h, w, C], without gradient.

    It starts from the bases [1, C, num_bases] of the collection 'bases', which training moves towards the batch's (all
    devices') mean bases.
    """

    layer: Layers
    num_bases: int
    num_stages: int
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        init = Initializer("normal", channels**-0.5)  # of length 1, nearly
        running = self.variable("bases", "bases", init, self._key(), (1, channels, self.num_bases))
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

    def _key(self) -> jax.Array | None:
        return self.make_rng("params") if self.is_initializing() else None


class EMAHead(nn.Module):
    """Attention in a compact set of bases found by EM, in place of pairs of positions.

    Features [B, h, w, C] to class scores [B, h, w, K]. The convolution before EM, `ema_mid_conv`,
    is never trained: it has no gradient, and an optimiser should keep weight decay off it.
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
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, inputs = self.layer, features[self.in_index]
        x = layer.conv_norm_act(self.ema_channels, 3, name="ema_in_conv")(inputs, train=train)
        mid = layer.conv_norm_act(
            self.ema_channels, 1, norm=False, activation="identity", name="ema_mid_conv"
        )(x, train=train)
        rebuilt = EMAttention(
            layer, self.num_bases, self.num_stages, self.momentum, name="ema_module"
        )(mid, train=train)
        rebuilt = layer.conv_norm_act(
            self.ema_channels, 1, activation="identity", name="ema_out_conv"
        )(nn.relu(rebuilt), train=train)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(
            nn.relu(x + rebuilt), train=train
        )
        x = jnp.concatenate([inputs.astype(x.dtype), x], axis=-1)
        x = layer.conv_norm_act(self.channels, 3, name="conv_cat")(x, train=train)
        return layer.classify(x, self.num_classes, train=train), {}
