"""DANet's head (arXiv:1809.02983)."""

import jax
from flax import linen as nn

from jaxseg.models.attention import LearnedScale, attend, einsum_f32, flatten_positions, project
from jaxseg.models.layers import Layers


class PositionAttention(nn.Module):
    """x plus, at every position, a mean over all positions, weighted by (unscaled) similarity: [B, h, w, C] -> [B, h, w, C]."""

    layer: Layers
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths = dict(
            query_project=self.channels, key_project=self.channels, value_project=x.shape[-1]
        )
        query, key, value = (
            flatten_positions(project(self.layer, x, width, name)) for name, width in widths.items()
        )
        return x + LearnedScale(name="gamma")(attend(query, key, value).reshape(x.shape))


class ChannelAttention(nn.Module):
    """x plus, in every channel, a mean over all channels, those least alike weighing most: [B, h, w, C] -> [B, h, w, C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        flat = flatten_positions(x)
        energy = einsum_f32("bnc,bnd->bcd", flat, flat)
        # The maximum cancels in the softmax and keeps its argument small.
        weights = jax.nn.softmax(energy.max(-1, keepdims=True) - energy, axis=-1).astype(x.dtype)
        return x + LearnedScale(name="gamma")(
            jax.numpy.einsum("bcd,bnd->bnc", weights, flat).reshape(x.shape)
        )


class DAHead(nn.Module):
    """Two attentions side by side, over positions and over channels; their sum is classified, and so is each in training.

    Features [B, h, w, C] to class scores [B, h, w, K]; out['pam'] and out['cam'] are the branches' own scores, for their losses.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    pam_channels: int = 64

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, x, branches = self.layer, features[self.in_index], {}
        for name, attention in (
            ("pam", PositionAttention(layer, self.pam_channels, name="pam")),
            ("cam", ChannelAttention(name="cam")),
        ):
            branch = layer.conv_norm_act(self.channels, 3, name=f"{name}_in_conv")(x, train=train)
            branches[name] = layer.conv_norm_act(self.channels, 3, name=f"{name}_out_conv")(
                attention(branch), train=train
            )
        out = {
            name: layer.classify(y, self.num_classes, train=train, name=f"{name}_conv_seg")
            for name, y in branches.items()
        }
        return layer.classify(branches["pam"] + branches["cam"], self.num_classes, train=train), out
