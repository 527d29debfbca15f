"""Losses of segmentation: pure functions of class scores and labels, and `make_loss`, which sums those of a config.

Scores are [B, H, W, K] (any leading axes) and computed in float32; labels [B, H, W] int, 255 = ignore. With `axis_name`
sums over pixels are taken over all devices before they are divided, so that N devices equal one; what selects pixels (OHEM,
Lovász) selects per device, as MMSegmentation does per GPU.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.models import choose
from jaxseg.models.layers import per_channel, resize_bilinear

IGNORE = 255


def _total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over everything, and over all devices."""
    x = jnp.sum(x)
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _one_hot(label: jax.Array, classes: int) -> jax.Array:
    """bool [..., K]; all False where ignored."""
    return label[..., None] == per_channel(jnp.arange(classes), label.ndim + 1)


def pixel_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax of the true class [B, H, W]; 0 where ignored. A masked sum, not a gather, whose gradient would scatter."""
    logits = logits.astype(jnp.float32)
    true = _one_hot(label, logits.shape[-1])
    picked = jnp.where(true, logits, 0).sum(-1)
    return jnp.where(label != IGNORE, jax.nn.logsumexp(logits, axis=-1) - picked, 0)


def ohem_mask(loss: jax.Array, probability: jax.Array, label: jax.Array, min_kept: int, threshold: float | None) -> jax.Array:
    """Online hard example mining (arXiv:1604.03540): 1 for the pixels that count, [B, H, W].

    Keeps the min_kept * B valid pixels of highest `loss`, or, with a threshold, those whose true class has a `probability`
    below it, and never fewer than that many.
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
    """Cross entropy over classes (softmax), or one binary cross entropy a class (`sigmoid`); a scalar.

    average: 'all' divides by the number of all pixels, ignored ones too, as MMSegmentation does; 'valid' by the number of
    pixels that are not ignored. class_weight: one factor a class (for `sigmoid`, of its positive term); the divisor stays a
    count. sampler: {'name': 'ohem', 'min_kept': int a sample, 'threshold': float, 0 for none}.
    """
    valid, classes = label != IGNORE, logits.shape[-1]
    logits, weights = logits.astype(jnp.float32), jnp.asarray(class_weight, jnp.float32)
    if sigmoid:
        positive = -jax.nn.log_sigmoid(logits)
        negative = positive + logits
        if class_weight:
            positive = positive * per_channel(weights, logits.ndim)
        loss = jnp.where(_one_hot(label, classes), positive, negative)
        loss = jnp.where(valid[..., None], loss, 0)
    else:
        loss = unweighted = pixel_cross_entropy(logits, label)
        if class_weight:
            loss = loss * jnp.where(valid, weights[jnp.where(valid, label, 0)], 0)
    if sampler and sampler["name"]:
        per_pixel = jax.lax.stop_gradient(loss.sum(-1) if sigmoid else unweighted)
        mask = ohem_mask(per_pixel, jnp.exp(-per_pixel), label, sampler["min_kept"], sampler["threshold"] or None)
        loss = loss * (mask[..., None] if sigmoid else mask)
    count = valid if average == "valid" else jnp.ones_like(valid)
    if average not in ("all", "valid"):
        raise ValueError(f"Unknown average '{average}' of cross_entropy: 'all' or 'valid'.")
    return _total(loss, axis_name) / jnp.maximum(_total(count, axis_name) * (classes if sigmoid else 1), 1)


LOSSES: dict[str, Callable[..., jax.Array]] = {"cross_entropy": cross_entropy}


def _arguments(loss: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = {k: v.to_dict() if hasattr(v, "to_dict") else v for k, v in loss.items()}
    return {k: v for k, v in kwargs.items() if k not in ("name", "weight", "target")}


def make_loss(config: Any, axis_name: str | None = None) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """The config's weighted sum of losses: f(logits, out, label) -> (scalar, {key: weighted scalar}).

    Each entry of `config.losses` applies to the scores of the same name in `out`, or to those its `target` names, resized to
    the label's size ('decode' is `logits` itself).
    """
    terms = {}
    for key, loss in config.losses.items():
        function = choose(LOSSES, loss.name, f"loss at config.losses.{key}")
        target = loss.get("target", "") or key
        terms[key] = (target, loss.weight, functools.partial(function, axis_name=axis_name, **_arguments(loss)))
    align_corners = config.model.align_corners

    def compute(logits: jax.Array, out: Mapping[str, jax.Array], label: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        parts = {}
        for key, (target, weight, function) in terms.items():
            scores = logits if target == "decode" else choose(out, target, f"output for config.losses.{key}")
            if scores.ndim == 4:
                scores = resize_bilinear(scores, label.shape[1:3], align_corners)
            parts[key] = weight * function(scores, label)
        return sum(parts.values()), parts

    return compute
