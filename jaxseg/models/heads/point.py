"""PointRend's head (arXiv:1912.08193): the second stage of a cascade, which classifies single points where the first is unsure."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.initializers import KAIMING, ZEROS, Initializer
from jaxseg.models.layers import Layers, sample_keys
from jaxseg.ops import per_channel, sample_bilinear


def uncertainty(logits: jax.Array) -> jax.Array:
    """How close the two best classes of logits [..., K] are: the second's score minus the first's, at most 0."""
    if logits.shape[-1] == 1:
        return -jnp.abs(logits[..., 0])
    best = jax.lax.top_k(logits, 2)[0]
    return best[..., 1] - best[..., 0]


class PointLinear(nn.Module):
    """A linear layer on points [B, P, C]; its kernel [1, C, features] is that of a 1-d convolution, as published weights have it."""

    features: int
    dtype: jnp.dtype
    kernel_init: Initializer = KAIMING

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (1, x.shape[-1], self.features))
        bias = self.param("bias", ZEROS, (self.features,))
        return x.astype(self.dtype) @ kernel[0].astype(self.dtype) + per_channel(
            bias, x.ndim
        ).astype(self.dtype)


class PointHead(nn.Module):
    """A small network classifies a point from its fine features and the coarse scores there, wherever these are uncertain.

    Maps [B, h, w, C] and `previous` [B, h, w, K] to class scores. In evaluation `previous` is doubled `subdivision_steps`
    times, [B, 4 h, 4 w, K], and each time its `subdivision_points` least certain pixels are classified anew. In training
    the scores are `previous`, and `out` holds `points` [B, P, 2], (x, y) in 0..1, and `point_logits` [B, P, K] for the loss:
    of `oversample` * P random points the least certain make up the share `importance` of P (RNG stream 'points').
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
    def __call__(self, features, previous=None, *, train: bool) -> tuple[jax.Array, dict]:
        layer, features = self.layer, [features[i] for i in self.in_index]
        hidden = [
            PointLinear(self.channels, layer.dtype, name=f"fcs.{i}.conv")
            for i in range(self.num_fcs)
        ]
        last = PointLinear(
            self.num_classes, layer.dtype, Initializer("normal", 0.001), name="fc_seg"
        )

        def classify(points):
            fine = [
                sample_bilinear(x, points, layer.align_corners).astype(layer.dtype)
                for x in features
            ]
            coarse = sample_bilinear(previous, points, layer.align_corners).astype(layer.dtype)
            x = jnp.concatenate([*fine, coarse], axis=-1)
            for linear in hidden:
                x = jnp.concatenate([nn.relu(linear(x)), coarse], axis=-1)
            return last(x).astype(jnp.float32)

        if train:
            points = self.training_points(jax.lax.stop_gradient(previous))
            return previous, {"points": points, "point_logits": classify(points)}
        refined = previous
        for _ in range(self.subdivision_steps):
            refined = layer.resize(refined, [2 * n for n in refined.shape[1:3]])
            batch, height, width, classes = refined.shape
            count = min(height * width, self.subdivision_points)
            index = jax.lax.top_k(uncertainty(refined).reshape(batch, -1), count)[1]
            points = (jnp.stack([index % width, index // width], axis=-1) + 0.5) / jnp.asarray(
                [[[width, height]]], jnp.float32
            )
            flat = refined.reshape(batch, height * width, classes)
            flat = flat.at[jnp.arange(batch)[:, None], index].set(
                classify(points), unique_indices=True
            )
            refined = flat.reshape(refined.shape)
        return refined, {}

    def training_points(self, previous: jax.Array) -> jax.Array:
        """Points [B, P, 2] to learn from: the least certain of many, and some at random."""
        many, chosen = (
            int(self.num_points * self.oversample),
            int(self.num_points * self.importance),
        )
        axis_name = None if self.is_initializing() else self.layer.axis_name
        keys = sample_keys(self.make_rng("points"), previous.shape[0], axis_name)
        points = jax.vmap(
            lambda key: jax.random.uniform(key, (many + self.num_points - chosen, 2))
        )(keys)
        candidates, rest = points[:, :many], points[:, many:]
        index = jax.lax.top_k(uncertainty(sample_bilinear(previous, candidates)), chosen)[1]
        return jnp.concatenate(
            [jnp.take_along_axis(candidates, index[..., None], axis=1), rest], axis=1
        )
