"""PointRend's head (arXiv:1912.08193), a cascade's second stage: it classifies single points."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseg.models.initializers import KAIMING, ZEROS, Initializer
from jaxseg.models.layers import (
    Features,
    HeadOutput,
    Layers,
    sample_keys,
    second_stage_error,
)
from jaxseg.ops import per_channel, sample_bilinear


def uncertainty(logits: jax.Array) -> jax.Array:
    """Return how uncertain predictions are, from the difference of the two best classes.

    Args:
        logits: Class scores [..., K].

    Returns:
        The second best score minus the best [...], at most 0; -|logit| for a single class.
    """
    if logits.shape[-1] == 1:
        return -jnp.abs(logits[..., 0])
    best = jax.lax.top_k(logits, 2)[0]
    return best[..., 1] - best[..., 0]


class PointLinear(nn.Module):
    """A linear layer on points [B, P, C] to [B, P, features].

    Its kernel has the shape [1, C, features] of a 1-d convolution, as in published weights.

    Attributes:
        features: Channels of the result.
        dtype: Type of the computation.
        kernel_init: Initialiser of the kernel.
    """

    features: int
    dtype: DTypeLike
    kernel_init: Initializer = KAIMING

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer."""
        kernel = self.param("kernel", self.kernel_init, (1, x.shape[-1], self.features))
        bias = per_channel(self.param("bias", ZEROS, (self.features,)), x.ndim)
        return x.astype(self.dtype) @ kernel[0].astype(self.dtype) + bias.astype(self.dtype)


class PointHead(nn.Module):
    """A small network that classifies points from their fine features and their coarse scores.

    In evaluation, the previous stage's scores are doubled in size `subdivision_steps` times, and
    each time the least certain pixels are reclassified. In training, the previous stage's scores
    are returned unchanged, with points and their scores as further outputs. The random stream is
    'points'.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the network's hidden layers.
        layer: The model's settings.
        in_index: The feature maps to read.
        num_fcs: Number of hidden layers.
        num_points: Points P per image in training.
        oversample: Ratio of random candidates to P.
        importance: Share of P that is taken from the least certain candidates; the rest is random.
        subdivision_steps: Doublings in evaluation.
        subdivision_points: Pixels classified after each doubling.
    """

    num_classes: int
    channels: int
    layer: Layers
    in_index: Sequence[int] = (0,)
    num_fcs: int = 3
    num_points: int = 2048
    oversample: float = 3
    importance: float = 0.75
    subdivision_steps: int = 2
    subdivision_points: int = 8196

    @nn.compact
    def __call__(
        self, features: Features, previous: jax.Array | None = None, *, train: bool
    ) -> HeadOutput:
        """Refine scores.

        Args:
            features: Feature maps [B, h_i, w_i, C_i].
            previous: Scores [B, h, w, K] of the earlier stage.
            train: Whether to train.

        Returns:
            In evaluation scores [B, s h, s w, K], s = 2**subdivision_steps, and {}. In training
            `previous` and `points` [B, P, 2], (x, y) in 0 to 1, with `point_logits` [B, P, K].

        Raises:
            ConfigError: The model has no earlier stage.
        """
        if previous is None:
            raise second_stage_error("PointHead")
        layer = self.layer
        maps = [features[i] for i in self.in_index]
        hidden = [
            PointLinear(self.channels, layer.dtype, name=f"fcs.{i}.conv")
            for i in range(self.num_fcs)
        ]
        small = Initializer("normal", 0.001)
        last = PointLinear(self.num_classes, layer.dtype, small, name="fc_seg")

        def classify(points: jax.Array) -> jax.Array:
            fine = [sample_bilinear(x, points, layer.align_corners) for x in maps]
            coarse = sample_bilinear(previous, points, layer.align_corners).astype(layer.dtype)
            x = jnp.concatenate([*(f.astype(layer.dtype) for f in fine), coarse], axis=-1)
            for linear in hidden:
                x = jnp.concatenate([nn.relu(linear(x)), coarse], axis=-1)
            return last(x).astype(jnp.float32)

        if train:
            points = self._training_points(jax.lax.stop_gradient(previous))
            return previous, {"points": points, "point_logits": classify(points)}
        refined = previous
        for _ in range(self.subdivision_steps):
            refined = layer.resize(refined, [2 * n for n in refined.shape[1:3]])
            index, points = self._uncertain_pixels(refined)
            batch, height, width, classes = refined.shape
            flat = refined.reshape(batch, height * width, classes)
            rows = jnp.arange(batch)[:, None]
            flat = flat.at[rows, index].set(classify(points), unique_indices=True)
            refined = flat.reshape(refined.shape)
        return refined, {}

    def _uncertain_pixels(self, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least certain pixels of scores [B, H, W, K]: indices [B, P] and centres [B, P, 2]."""
        batch, height, width, _ = scores.shape
        count = min(height * width, self.subdivision_points)
        index = jax.lax.top_k(uncertainty(scores).reshape(batch, -1), count)[1]
        centres = jnp.stack([index % width, index // width], axis=-1) + 0.5
        return index, centres / jnp.asarray([[[width, height]]], jnp.float32)

    def _training_points(self, previous: jax.Array) -> jax.Array:
        """Points [B, P, 2] to train on: the least certain of many candidates, and random ones."""
        many = int(self.num_points * self.oversample)
        chosen = int(self.num_points * self.importance)
        count = many + self.num_points - chosen
        axis_name = None if self.is_initializing() else self.layer.axis_name
        keys = sample_keys(self.make_rng("points"), previous.shape[0], axis_name)
        points = jax.vmap(lambda key: jax.random.uniform(key, (count, 2)))(keys)
        candidates, rest = points[:, :many], points[:, many:]
        index = jax.lax.top_k(uncertainty(sample_bilinear(previous, candidates)), chosen)[1]
        uncertain = jnp.take_along_axis(candidates, index[..., None], axis=1)
        return jnp.concatenate([uncertain, rest], axis=1)
