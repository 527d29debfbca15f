"""Class scores of whole images, averaged over test-time scales and mirror images.

As in MMSegmentation, the image is resized for testing, and the model's logits are resized to the
size of the label or the original image before the argmax. With several scales or mirror images, the
softmax probabilities of the resized logits are averaged.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.inference.settings import TestSettings
from jaxseg.ops import normalize, resize_bilinear


class Model(Protocol):
    """The interface of a model for inference, as `jaxseg.models.create_model` returns it."""

    def apply(
        self, variables: Any, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        """Return (logits [B, h, w, K], further outputs) of normalised images [B, h, w, C]."""
        ...


def forward(model: Model, settings: TestSettings, variables: Any, images: jax.Array) -> jax.Array:
    """Normalise images and run the model on them.

    Args:
        model: The model.
        settings: Provides `mean` and `std` to normalise the images.
        variables: The model's variables.
        images: uint8, uint16 or float32 [B, h, w, C].

    Returns:
        Logits, float32 [B, h, w, K].
    """
    mean, std = (np.asarray(values, np.float32) for values in (settings.mean, settings.std))
    logits, _ = model.apply(variables, normalize(images, mean, std), train=False)
    return logits.astype(jnp.float32)


def softmax(logits: jax.Array) -> jax.Array:
    """Turn logits [..., K] into class probabilities float32 [..., K].

    If a logit of a pixel is not finite, all of its probabilities become NaN, so that averages show
    it; the softmax alone would turn -inf into 0.
    """
    return jax.nn.softmax(jnp.where(jnp.isfinite(logits), logits, jnp.nan))


def classify(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the class with the highest score.

    Args:
        scores: float32 [..., H, W, K].

    Returns:
        Class ids int32 [..., H, W], and for each image the number of pixels with a score that is
        not finite, int32 [...].
    """
    nonfinite = ~jnp.isfinite(scores).all(-1)
    ids = jnp.argmax(scores, -1).astype(jnp.int32)
    return ids, nonfinite.sum((-2, -1), dtype=jnp.int32)


def predict(
    model: Model,
    settings: TestSettings,
    variables: Any,
    images: Sequence[jax.Array],
    size: tuple[int, int],
) -> jax.Array:
    """Compute class scores of whole images, with one forward pass for each scale and mirror image.

    This is a pure function, to be jitted for a fixed `size`.

    Args:
        model: The model.
        settings: Test-time settings.
        variables: The model's variables.
        images: The images at each of `settings.scales` (`data.augment.transforms.scaled_views`):
            uint8, uint16 or float32 [B, h, w, C].
        size: (H, W) of the result in pixels.

    Returns:
        Scores float32 [B, H, W, K]: logits of a single pass, or mean probabilities of several, NaN
        for pixels with a logit that is not finite.
    """
    total: Any = 0.0
    for _, view in zip(settings.scales, images, strict=True):
        batch = len(view)
        both = jnp.concatenate([view, view[:, :, ::-1]]) if settings.flip else view
        logits = forward(model, settings, variables, both)
        scores = resize_bilinear(logits, size, settings.align_corners)
        if settings.num_views == 1:
            return scores
        scores = softmax(scores)
        total += scores[:batch] + scores[batch:, :, ::-1] if settings.flip else scores
    return total / settings.num_views
