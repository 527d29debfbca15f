"""Losses that measure the overlap of predicted and true regions: Dice, Tversky, Lovász."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg.constants import IGNORE
from jaxseg.errors import ConfigError
from jaxseg.losses.reduction import class_weights, mean_over_classes, one_hot, total


def _regions(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Flatten the pixels to P and mask the ignored ones.

    Returns:
        Probabilities float32 [B, P, K], truth float32 [B, P, K] (0 or 1), both 0 where ignored, and
        valid bool [B, P, 1].
    """
    batch, classes = logits.shape[0], logits.shape[-1]
    label = label.reshape(batch, -1)
    valid = (label != IGNORE)[..., None]
    probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).reshape(batch, -1, classes)
    return jnp.where(valid, probability, 0), one_hot(label, classes).astype(jnp.float32), valid


def dice(
    logits: jax.Array,
    label: jax.Array,
    *,
    smooth: float = 1.0,
    exponent: float = 2.0,
    class_weight: Sequence[float] = (),
    masked: bool = True,
    axis_name: str | None = None,
) -> jax.Array:
    """Compute the Dice loss (V-Net, Milletari et al. 2016, arXiv:1606.04797).

    The loss is the mean over samples and classes of

        1 - (2 * sum(p * t) + smooth) / (sum(p ** exponent + t ** exponent) + smooth)

    with softmax probabilities p and truth t (0 or 1), summed over the pixels.

    Args:
        logits: [B, H, W, K], any float type.
        label: int [B, H, W], 255 = ignore.
        smooth: Keeps the ratio defined for classes without pixels.
        exponent: Exponent in the denominator.
        class_weight: One weight per class, () for none.
        masked: Whether to leave out ignored pixels everywhere. False reproduces MMSegmentation 0.x,
            which counts ignored pixels as the last class in the denominator.
        axis_name: Mapped axis over whose devices samples are averaged.

    Returns:
        float32 scalar.
    """
    probability, truth, valid = _regions(logits, label)
    overlap = 2 * (probability * truth).sum(1) + smooth
    if not masked:
        probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).reshape(probability.shape)
        truth = truth.at[..., -1].set(jnp.where(valid[..., 0], truth[..., -1], 1))
    size = (probability**exponent + truth**exponent).sum(1) + smooth
    return mean_over_classes(1 - overlap / size, class_weight, axis_name)


def tversky(
    logits: jax.Array,
    label: jax.Array,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    class_weight: Sequence[float] = (),
    axis_name: str | None = None,
) -> jax.Array:
    """Compute the Tversky loss (Salehi et al. 2017, arXiv:1706.05721).

    It is a Dice loss that weighs false positives and false negatives differently: the mean over
    samples and classes of

        1 - (TP + smooth) / (TP + alpha * FP + beta * FN + smooth)

    with true positives TP, false positives FP and false negatives FN as sums of softmax
    probabilities over the pixels.

    Args:
        logits: [B, H, W, K], any float type.
        label: int [B, H, W], 255 = ignore.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: Keeps the ratio defined for classes without pixels.
        class_weight: One weight per class, () for none.
        axis_name: Mapped axis over whose devices samples are averaged.

    Returns:
        float32 scalar.
    """
    probability, truth, _ = _regions(logits, label)
    hit = (probability * truth).sum(1)
    false_positive, false_negative = probability.sum(1) - hit, truth.sum(1) - hit
    index = (hit + smooth) / (hit + alpha * false_positive + beta * false_negative + smooth)
    return mean_over_classes(1 - index, class_weight, axis_name)


def _lovasz_terms(
    probability: jax.Array, truth: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute the Lovász extension of the Jaccard loss of every class.

    Args:
        probability: float32 [P, K].
        truth: float32 [P, K].
        valid: bool [P, 1].

    Returns:
        The extension [K], and the number of true pixels of each class [K].
    """
    # Ignored pixels are sorted to the end, where they change nothing.
    errors = jnp.where(valid, jnp.abs(truth - probability), -1.0)
    order = jnp.argsort(-jax.lax.stop_gradient(errors), axis=0)
    errors, truth, valid = (
        jnp.take_along_axis(jnp.broadcast_to(x, errors.shape), order, axis=0)
        for x in (errors, truth, valid)
    )
    pixels = truth.sum(0)
    missed = pixels[None, :] - jnp.cumsum(truth, axis=0)
    union = pixels[None, :] + jnp.cumsum((1 - truth) * valid, axis=0)
    jaccard = 1 - missed / jnp.maximum(union, 1)
    steps = jnp.diff(jaccard, axis=0, prepend=jnp.zeros((1, jaccard.shape[1])))
    return jnp.where(valid, errors * steps, 0).sum(0), pixels


def lovasz(
    logits: jax.Array,
    label: jax.Array,
    *,
    classes: str = "present",
    per_image: bool = False,
    class_weight: Sequence[float] = (),
    axis_name: str | None = None,
) -> jax.Array:
    """Compute the Lovász-softmax loss (Berman et al. 2018, arXiv:1705.08790).

    It is a convex surrogate of 1 - mean IoU. The errors |t - p| of a class are sorted in decreasing
    order, and each is multiplied by the increase of the Jaccard loss when its pixel is added to the
    preceding ones.

    Args:
        logits: [B, H, W, K], any float type.
        label: int [B, H, W], 255 = ignore.
        classes: Average over the classes 'present' in the labels or over 'all'.
        per_image: Whether to average the losses of single images; otherwise the loss is computed
            on the device's whole batch at once.
        class_weight: One weight per class, () for none.
        axis_name: Mapped axis over whose devices the losses are averaged.

    Returns:
        float32 scalar.

    Raises:
        ConfigError: `classes` or `class_weight` is invalid.
    """
    if classes not in ("present", "all"):
        raise ConfigError(
            f"Unknown classes '{classes}' of lovasz: 'present' or 'all'.", field="classes"
        )
    terms = _regions(logits, label)
    if not per_image:
        probability, truth, valid = (x.reshape(1, -1, x.shape[-1]) for x in terms)
        terms = (probability, truth, valid)
    loss, pixels = jax.vmap(_lovasz_terms)(*terms)
    counted = pixels > 0 if classes == "present" else jnp.ones_like(pixels, bool)
    weights = class_weights(class_weight, loss.shape[-1])[None, :]
    loss = jnp.where(counted, loss * weights, 0).sum(-1) / jnp.maximum(counted.sum(-1), 1)
    return total(loss, axis_name) / total(jnp.ones_like(loss), axis_name)
