"""EncNet's head (arXiv:1803.08904)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import einsum_f32, flatten_positions
from jaxseg.models.initializers import TORCH, Initializer
from jaxseg.models.layers import Features, HeadOutput, Layers


class Encoding(nn.Module):
    """Residuals to learned codewords, softly assigned and summed over positions.

    Distances are expanded as |x|^2 - 2 x c + |c|^2, so that no [B, h w, num_codes, C] array is
    built.

    Attributes:
        num_codes: Number of codewords.
    """

    num_codes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, h, w, C] to [B, num_codes, C], float32."""
        shape = (self.num_codes, x.shape[-1])
        init = Initializer("uniform", (shape[0] * shape[1]) ** -0.5)
        codewords = self.param("codewords", init, shape)
        smoothing = self.param("factor", Initializer("range", 0.0, low=-1.0), (self.num_codes,))
        x = flatten_positions(x).astype(jnp.float32)
        lengths = jnp.square(x).sum(-1, keepdims=True)
        lengths = lengths + jnp.square(codewords).sum(-1)[None, None, :]
        distances = lengths - 2 * einsum_f32("bnc,kc->bnk", x, codewords)
        weights = jax.nn.softmax(smoothing[None, None, :] * distances, axis=-1)
        total = einsum_f32("bnk,bnc->bkc", weights, x)
        return total - weights.sum(1)[:, :, None] * codewords[None]


class EncHead(nn.Module):
    """The image's encoding by a learned dictionary gates the channels and predicts the classes.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the convolutions.
        layer: The model's settings.
        in_index: The feature map to read.
        num_codes: Number of codewords of the dictionary.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    num_codes: int = 32

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] to class scores [B, h, w, K].

        The further output `presence` [B, K] scores whether each class is in the image, for a loss
        of its own.
        """
        layer = self.layer
        conv = layer.conv_norm_act(self.channels, 3, name="bottleneck")
        x = conv(features[self.in_index], train=train)
        encoding = self._encode(x, train)
        gate = nn.sigmoid(self._linear(self.channels, "enc_module.fc.0")(encoding))
        x = nn.relu(x + x * gate[:, None, None, :].astype(x.dtype))
        presence = self._linear(self.num_classes, "se_layer")(encoding)
        return layer.classify(x, self.num_classes, train=train), {"presence": presence}

    def _encode(self, x: jax.Array, train: bool) -> jax.Array:
        """The mean encoding [B, C] of an image, float32."""
        conv = self.layer.conv_norm_act(self.channels, 1, name="enc_module.encoding_project")
        encoding = Encoding(self.num_codes, name="enc_module.encoding.0")(conv(x, train=train))
        # The norm treats codes as channels, so they must be the last axis.
        norm = self.layer.norm(name="enc_module.encoding.1")
        encoding = norm(encoding.swapaxes(1, 2), train=train)
        return nn.relu(encoding).astype(jnp.float32).mean(-1)

    def _linear(self, width: int, name: str) -> nn.Dense:
        bias_init = Initializer("uniform", self.channels**-0.5)
        return nn.Dense(width, dtype=jnp.float32, kernel_init=TORCH, bias_init=bias_init, name=name)
