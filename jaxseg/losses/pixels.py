"""Losses that average over pixels, points or images: cross entropies and the focal loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg.constants import IGNORE
from jaxseg.losses.reduction import class_weights, mean_over_pixels, one_hot, total
from jaxseg.ops import per_channel, sample_nearest
from jaxseg.registry import check_name

SAMPLERS = ("", "ohem")  # names of samplers; "" for none


def pixel_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Compute -log softmax(logits) of the true class of each pixel.

    It is computed as a masked sum instead of a gather, whose gradient would be a scatter.

    Args:
        logits: Class scores [..., K], any float type.
        label: int [...], 255 = ignore.

    Returns:
        float32 [...], 0 where ignored.
    """
    logits = logits.astype(jnp.float32)
    true = one_hot(label, logits.shape[-1])
    picked = jnp.where(true, logits, 0).sum(-1)
    return jnp.where(label != IGNORE, jax.nn.logsumexp(logits, axis=-1) - picked, 0)


def ohem_mask(
    loss: jax.Array,
    probability: jax.Array,
    label: jax.Array,
    min_kept: int,
    threshold: float | None,
) -> jax.Array:
    """Select pixels by online hard example mining (Shrivastava et al. 2016, arXiv:1604.03540).

    Without a threshold, the `min_kept * B` valid pixels with the highest loss are kept. With a
    threshold, the pixels whose true class has a lower probability are kept, but at least that many.

    Args:
        loss: float32 [B, H, W].
        probability: float32 [B, H, W], predicted probability of the true class.
        label: int [B, H, W], 255 = ignore.
        min_kept: Pixels to keep per sample.
        threshold: Threshold of the probability, or None.

    Returns:
        bool [B, H, W], True for the pixels that count.
    """
    valid = label != IGNORE
    kept = min(min_kept * label.shape[0], label.size)
    if threshold is None:
        smallest = jax.lax.top_k(jnp.where(valid, loss, -jnp.inf).reshape(-1), kept)[0][-1]
        return valid & (loss >= smallest)
    ordered = jnp.sort(jnp.where(valid, probability, jnp.inf).reshape(-1))
    last = ordered[jnp.clip(valid.sum() - 1, 0, kept)]
    return valid & (probability < jnp.maximum(last, threshold))


def cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    sigmoid: bool = False,
    class_weight: Sequence[float] = (),
    average: str = "all",
    sampler: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Compute the cross entropy of class scores.

    With softmax probabilities p and true class t of each pixel, the mean of

        -w[t] * log p[t]

    With `sigmoid`, one binary cross entropy per class, averaged over the classes; its weight w
    applies to positives.

    Args:
        logits: [B, H, W, K], any float type and any leading axes.
        label: int [B, H, W], 255 = ignore.
        sigmoid: Use one binary cross entropy per class instead of a softmax over the classes.
        class_weight: One weight per class, () for none; the divisor stays a count of pixels.
        average: 'all' divides by the number of all pixels, ignored ones too, as MMSegmentation
            does; 'valid' by the number of pixels that are not ignored.
        sampler: {'name': 'ohem', 'min_kept': pixels per sample, 'threshold': probability, 0 for
            none}: only hard pixels count (`ohem_mask`). None or an empty name for all pixels.
        axis_name: Mapped axis over whose devices pixels are summed and counted. OHEM selects per
            device.

    Returns:
        float32 scalar.

    Raises:
        ConfigError: `class_weight`, `average` or the sampler's name is invalid.
    """
    valid = label != IGNORE
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    weights = class_weights(class_weight, classes)
    if sigmoid:
        positive = -jax.nn.log_sigmoid(logits)
        negative = positive + logits
        if class_weight:
            positive = positive * per_channel(weights, logits.ndim)
        loss = jnp.where(one_hot(label, classes), positive, negative)
        loss = jnp.where(valid[..., None], loss, 0)
    else:
        plain = pixel_cross_entropy(logits, label)
        loss = plain
        if class_weight:
            loss = loss * jnp.where(valid, weights[jnp.where(valid, label, 0)], 0)
    if sampler:
        check_name(SAMPLERS, sampler["name"], "sampler of cross_entropy", field="sampler.name")
    if sampler and sampler["name"] == "ohem":
        ranked = jax.lax.stop_gradient(loss.sum(-1) if sigmoid else loss)
        probability = jnp.exp(-ranked if sigmoid else -jax.lax.stop_gradient(plain))
        mask = ohem_mask(
            ranked, probability, label, sampler["min_kept"], sampler["threshold"] or None
        )
        kept = mask.astype(jnp.float32)  # a product with it, unlike jnp.where, does not hide NaN
        loss = loss * (kept[..., None] if sigmoid else kept)
    return mean_over_pixels(loss, label, average, axis_name) / (classes if sigmoid else 1)


def point_cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    points: jax.Array,
    align_corners: bool = False,
    sigmoid: bool = False,
    class_weight: Sequence[float] = (),
    average: str = "all",
    sampler: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Compute the cross entropy at points (PointRend, Kirillov et al. 2020, arXiv:1912.08193).

    The class of a point is the label of the nearest pixel. The other options are the same as for
    `cross_entropy`, with points instead of pixels.

    Args:
        logits: [B, P, K], scores at the points.
        label: int [B, H, W], 255 = ignore.
        points: float32 [B, P, 2], (x, y) from 0 to 1.
        align_corners: Whether 0 and 1 are the centres of the outermost pixels, not the edges of the
            image.
        sigmoid: See `cross_entropy`.
        class_weight: See `cross_entropy`.
        average: See `cross_entropy`.
        sampler: See `cross_entropy`.
        axis_name: See `cross_entropy`.

    Returns:
        float32 scalar.

    Raises:
        ConfigError: See `cross_entropy`.
    """
    return cross_entropy(
        logits,
        sample_nearest(label, points, align_corners),
        sigmoid=sigmoid,
        class_weight=class_weight,
        average=average,
        sampler=sampler,
        axis_name=axis_name,
    )


def se_loss(scores: jax.Array, label: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Compute EncNet's semantic encoding loss (Zhang et al. 2018, arXiv:1803.08904).

    The binary cross entropy of predicting which classes an image contains, averaged over images and
    classes.

    Args:
        scores: [B, K], any float type; the logit that each class is in the image.
        label: int [B, H, W], 255 = ignore.
        axis_name: Mapped axis over whose devices images are averaged.

    Returns:
        float32 scalar.
    """
    present = one_hot(label, scores.shape[-1]).any(tuple(range(1, label.ndim)))
    loss = optax.sigmoid_binary_cross_entropy(
        scores.astype(jnp.float32), present.astype(jnp.float32)
    )
    return total(loss, axis_name) / total(jnp.ones_like(loss), axis_name)


def focal(
    logits: jax.Array,
    label: jax.Array,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] = 0.5,
    class_weight: Sequence[float] = (),
    average: str = "all",
    axis_name: str | None = None,
) -> jax.Array:
    """Compute the focal loss (Lin et al. 2017, arXiv:1708.02002).

    It is a cross entropy in which easy pixels count less: one binary cross entropy per class,
    averaged over the classes. With the predicted probability p of the truth, each term is

        -a * (1 - p) ** gamma * log p,    a = alpha where the class is present, 1 - alpha elsewhere

    Args:
        logits: [B, H, W, K], any float type and any leading axes.
        label: int [B, H, W], 255 = ignore.
        gamma: Exponent, 0 for the plain cross entropy.
        alpha: Weight of positives, one number or one per class.
        class_weight: One weight per class, () for none.
        average: 'all' or 'valid', see `cross_entropy`.
        axis_name: Mapped axis over whose devices pixels are summed and counted.

    Returns:
        float32 scalar.

    Raises:
        ConfigError: `class_weight` or `average` is invalid.
    """
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    positive = one_hot(label, classes)
    signed = jnp.where(positive, logits, -logits)
    alphas, weights = (
        per_channel(jnp.broadcast_to(jnp.asarray(v, jnp.float32), (classes,)), logits.ndim)
        for v in (alpha, class_weights(class_weight, classes))
    )
    # (1 - p)^gamma is computed from its logarithm, so that its gradient is finite if p rounds to 1.
    loss = -jax.nn.log_sigmoid(signed) * jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    loss = loss * jnp.where(positive, alphas, 1 - alphas) * weights
    loss = jnp.where((label != IGNORE)[..., None], loss, 0)
    return mean_over_pixels(loss, label, average, axis_name) / classes
