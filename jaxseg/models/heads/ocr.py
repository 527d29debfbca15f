"""OCRNet's head (arXiv:1909.11065): the second stage of a cascade."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.layers import Features, HeadOutput, Layers, second_stage_error
from jaxseg.ops import resize_concat


class OCRHead(nn.Module):
    """Attention from every pixel to K class representations.

    A class is represented by the mean of all features, weighted by the previous stage's scores.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the features.
        layer: The model's settings.
        in_index: The feature map to read, or several, concatenated at the finest resolution.
        ocr_channels: Channels of queries, keys and values.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: int | Sequence[int] = -1
    ocr_channels: int = 256

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Map features [B, h, w, C] and previous [B, h', w', K] to class scores [B, h, w, K].

        Raises:
            ConfigError: The model has no earlier stage.
        """
        layer = self.layer
        if previous is None:
            raise second_stage_error("OCRHead")
        indices = [self.in_index] if isinstance(self.in_index, int) else self.in_index
        x = resize_concat([features[i] for i in indices], layer.align_corners)
        x = layer.conv_norm_act(self.channels, 3, name="bottleneck")(x, train=train)
        scores = layer.resize(previous.astype(jnp.float32), x.shape[1:3])
        weights = nn.softmax(scores, axis=(1, 2)).astype(x.dtype)
        regions = jnp.einsum("bhwk,bhwc->bkc", weights, x)[:, :, None, :]

        def project(y: jax.Array, name: str, channels: int = self.ocr_channels) -> jax.Array:
            conv = layer.conv_norm_act(channels, 1, name=f"object_context_block.{name}")
            return conv(y, train=train)

        query = project(project(x, "query_project.0"), "query_project.1")
        key = project(project(regions, "key_project.0"), "key_project.1")[:, :, 0]
        value = project(regions, "value_project")[:, :, 0]
        similarity = jnp.einsum(
            "bhwc,bkc->bhwk", query, key, preferred_element_type=jnp.float32
        ) * (self.ocr_channels**-0.5)
        attention = nn.softmax(similarity, axis=-1).astype(x.dtype)
        context = jnp.einsum("bhwk,bkc->bhwc", attention, value)
        context = project(context, "out_project", self.channels)
        x = project(jnp.concatenate([context, x], axis=-1), "bottleneck", self.channels)
        return layer.classify(x, self.num_classes, train=train), {}
