"""DANet's head (arXiv:1809.02983)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import LearnedScale, attend, einsum_f32, flatten_positions, project
from jaxseg.models.layers import Features, HeadOutput, Layers


class PositionAttention(nn.Module):
    """Attention from every position to all positions by unscaled similarity, added to the input.

    Attributes:
        layer: The model's settings.
        channels: Channels of queries and keys.
    """

    layer: Layers
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, h, w, C] to the same shape."""
        query = flatten_positions(project(self.layer, x, self.channels, "query_project"))
        key = flatten_positions(project(self.layer, x, self.channels, "key_project"))
        value = flatten_positions(project(self.layer, x, x.shape[-1], "value_project"))
        return x + LearnedScale(name="gamma")(attend(query, key, value).reshape(x.shape))


class ChannelAttention(nn.Module):
    """Attention from every channel to all channels, strongest to the least similar ones.

    The result is added to the input.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, h, w, C] to the same shape."""
        flat = flatten_positions(x)
        energy = einsum_f32("bnc,bnd->bcd", flat, flat)
        # The maximum cancels in the softmax; it keeps the exponents small.
        weights = jax.nn.softmax(energy.max(-1, keepdims=True) - energy, axis=-1).astype(x.dtype)
        context = jnp.einsum("bcd,bnd->bnc", weights, flat).reshape(x.shape)
        return x + LearnedScale(name="gamma")(context)


class DAHead(nn.Module):
    """Parallel attention over positions and over channels, whose sum is classified.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        pam_channels: Channels of queries and keys of the attention over positions.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    pam_channels: int = 64

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K].

        The further outputs `pam` and `cam` are the scores [B, h, w, K] of the two branches, for
        losses of their own.
        """
        layer = self.layer
        x = features[self.in_index]
        attentions = {
            "pam": PositionAttention(layer, self.pam_channels, name="pam"),
            "cam": ChannelAttention(name="cam"),
        }
        branches, out = {}, {}
        for name, attention in attentions.items():
            y = layer.conv_norm_act(self.channels, 3, name=f"{name}_in_conv")(x, train=train)
            conv = layer.conv_norm_act(self.channels, 3, name=f"{name}_out_conv")
            branches[name] = conv(attention(y), train=train)
        for name, y in branches.items():
            out[name] = layer.classify(y, self.num_classes, train=train, name=f"{name}_conv_seg")
        total = branches["pam"] + branches["cam"]
        return layer.classify(total, self.num_classes, train=train), out
