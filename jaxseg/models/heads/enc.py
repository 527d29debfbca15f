"""EncNet's head (arXiv:1803.08904)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.attention import einsum_f32, flatten_positions
from jaxseg.models.initializers import TORCH, Initializer
from jaxseg.models.layers import Layers


class Encoding(nn.Module):
    """Residuals to learned codewords, softly assigned and summed over positions: [B, h, w, C] -> [B, num_codes, C], float32.

    Distances are expanded as |x|^2 - 2 x c + |c|^2, so that no [B, h w, num_codes, C] array is built.
    """

    num_codes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        codewords = self.param(
            "codewords",
            Initializer("uniform", (self.num_codes * channels) ** -0.5),
            (self.num_codes, channels),
        )
        smoothing = self.param("factor", Initializer("range", 0.0, low=-1.0), (self.num_codes,))
        x = flatten_positions(x).astype(jnp.float32)
        lengths = (
            jnp.square(x).sum(-1, keepdims=True) + jnp.square(codewords).sum(-1)[None, None, :]
        )
        distances = lengths - 2 * einsum_f32("bnc,kc->bnk", x, codewords)
        weights = jax.nn.softmax(smoothing[None, None, :] * distances, axis=-1)
        return einsum_f32("bnk,bnc->bkc", weights, x) - weights.sum(1)[:, :, None] * codewords[None]


class EncHead(nn.Module):
    """An image's encoding by a learned dictionary gates the channels, and says which classes are there.

    Features [B, h, w, C] to class scores [B, h, w, K]; out['presence'] [B, K] scores every class's presence in the image.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int = -1
    num_codes: int = 32

    @nn.compact
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        def linear(width: int, name: str) -> nn.Dense:
            bias_init = Initializer("uniform", self.channels**-0.5)
            return nn.Dense(
                width, dtype=jnp.float32, kernel_init=TORCH, bias_init=bias_init, name=name
            )

        x = self.layer.conv_norm_act(self.channels, 3, name="bottleneck")(
            features[self.in_index], train=train
        )
        projected = self.layer.conv_norm_act(self.channels, 1, name="enc_module.encoding_project")(
            x, train=train
        )
        encoding = Encoding(self.num_codes, name="enc_module.encoding.0")(projected)
        # The norm's channels are the codes, which its last axis must be.
        encoding = self.layer.norm(name="enc_module.encoding.1")(
            encoding.swapaxes(1, 2), train=train
        )
        encoding = nn.relu(encoding).astype(jnp.float32).mean(-1)
        gate = nn.sigmoid(linear(self.channels, "enc_module.fc.0")(encoding))
        x = nn.relu(x + x * gate[:, None, None, :].astype(x.dtype))
        presence = linear(self.num_classes, "se_layer")(encoding)
        return self.layer.classify(x, self.num_classes, train=train), {"presence": presence}
