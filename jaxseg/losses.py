"""Losses of segmentation: pure functions of class scores and labels, and `make_loss`, which sums those of a config.

Scores are [B, H, W, K] (any leading axes) and computed in float32; labels [B, H, W] int, 255 = ignore. With `axis_name`
sums over pixels are taken over all devices before they are divided, so that N devices equal one; what selects pixels (OHEM,
Lovász) selects per device, as MMSegmentation does per GPU.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg.config.defaults import AUTO
from jaxseg.constants import IGNORE
from jaxseg.errors import ConfigError
from jaxseg.ops import per_channel, resize_bilinear, sample_nearest
from jaxseg.registry import lookup


def _total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over everything, and over all devices."""
    x = jnp.sum(x)
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _one_hot(label: jax.Array, classes: int) -> jax.Array:
    """bool [..., K]; all False where ignored."""
    return label[..., None] == per_channel(jnp.arange(classes), label.ndim + 1)


def _weights(class_weight: Sequence[float], classes: int) -> jax.Array:
    """float32 [K]; ones where no weights are given. ConfigError unless there is one a class."""
    if len(class_weight) not in (0, classes):
        raise ConfigError(
            f"class_weight has {len(class_weight)} values for {classes} classes", field="class_weight",
            hint="give one a class, or none",
        )  # fmt: skip
    return jnp.asarray(class_weight or [1.0] * classes, jnp.float32)


def _mean(loss: jax.Array, label: jax.Array, average: str, axis_name: str | None) -> jax.Array:
    """The sum of loss over the number of all pixels ('all') or of those that are not ignored ('valid')."""
    if average not in ("all", "valid"):
        raise ConfigError(
            f"Unknown average '{average}' of a loss: 'all' or 'valid'.", field="average"
        )
    count = label != IGNORE if average == "valid" else jnp.ones_like(label)
    return _total(loss, axis_name) / jnp.maximum(_total(count, axis_name), 1)


def pixel_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax of the true class [B, H, W]; 0 where ignored. A masked sum, not a gather, whose gradient would scatter."""
    logits = logits.astype(jnp.float32)
    true = _one_hot(label, logits.shape[-1])
    picked = jnp.where(true, logits, 0).sum(-1)
    return jnp.where(label != IGNORE, jax.nn.logsumexp(logits, axis=-1) - picked, 0)


def ohem_mask(
    loss: jax.Array,
    probability: jax.Array,
    label: jax.Array,
    min_kept: int,
    threshold: float | None,
) -> jax.Array:
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
    logits, weights = logits.astype(jnp.float32), _weights(class_weight, classes)
    if sigmoid:
        positive = -jax.nn.log_sigmoid(logits)
        negative = positive + logits
        if class_weight:
            positive = positive * per_channel(weights, logits.ndim)
        loss = jnp.where(_one_hot(label, classes), positive, negative)
        loss = jnp.where(valid[..., None], loss, 0)
    else:
        loss = plain = pixel_cross_entropy(logits, label)
        if class_weight:
            loss = loss * jnp.where(valid, weights[jnp.where(valid, label, 0)], 0)
    if sampler and lookup(
        {"": False, "ohem": True}, sampler["name"], "sampler of cross_entropy", field="sampler.name"
    ):
        ranked = jax.lax.stop_gradient(loss.sum(-1) if sigmoid else loss)
        probability = jnp.exp(-ranked if sigmoid else -jax.lax.stop_gradient(plain))
        mask = ohem_mask(
            ranked, probability, label, sampler["min_kept"], sampler["threshold"] or None
        )
        loss = loss * (mask[..., None] if sigmoid else mask)
    return _mean(loss, label, average, axis_name) / (classes if sigmoid else 1)


def point_cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    points: jax.Array,
    align_corners: bool = False,
    **options: Any,
) -> jax.Array:
    """Cross entropy of scores [B, P, K] at points [B, P, 2], (x, y) in 0..1, whose classes are those of the nearest pixels (PointRend).

    Divided by the number of all points, or with average='valid' of those not ignored; further options: cross_entropy's.
    """
    return cross_entropy(logits, sample_nearest(label, points, align_corners), **options)


def class_presence(
    scores: jax.Array, label: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
    """EncNet's loss (arXiv:1803.08904): binary cross entropy of scores [B, K] for "class k is in the image"; a scalar."""
    present = _one_hot(label, scores.shape[-1]).any(tuple(range(1, label.ndim)))
    loss = optax.sigmoid_binary_cross_entropy(
        scores.astype(jnp.float32), present.astype(jnp.float32)
    )
    return _total(loss, axis_name) / _total(jnp.ones_like(loss), axis_name)


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
    """Focal loss (arXiv:1708.02002): one binary cross entropy a class, easy pixels weighted down; a scalar.

    A term counts (1 - p)^gamma, p being the probability of what is true, and alpha (positives) or 1 - alpha (negatives); alpha
    may be one number a class. average: 'all' or 'valid', as in cross_entropy.
    """
    logits, classes = logits.astype(jnp.float32), logits.shape[-1]
    positive = _one_hot(label, classes)
    signed = jnp.where(positive, logits, -logits)
    alphas, weights = (
        per_channel(jnp.broadcast_to(jnp.asarray(v, jnp.float32), (classes,)), logits.ndim)
        for v in (alpha, _weights(class_weight, classes))
    )
    # (1 - p)^gamma by way of its logarithm, whose gradient stays finite where p rounds to 1.
    loss = -jax.nn.log_sigmoid(signed) * jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    loss = loss * jnp.where(positive, alphas, 1 - alphas) * weights
    return (
        _mean(jnp.where((label != IGNORE)[..., None], loss, 0), label, average, axis_name) / classes
    )


# --- Losses of regions: how well each class's region is covered -------------------------------------------------------


def _regions(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Probabilities [B, P, K], truth [B, P, K] as 0 and 1, valid [B, P, 1]; P pixels, probability and truth 0 where ignored."""
    batch, classes = logits.shape[0], logits.shape[-1]
    label = label.reshape(batch, -1)
    valid = (label != IGNORE)[..., None]
    probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).reshape(batch, -1, classes)
    return jnp.where(valid, probability, 0), _one_hot(label, classes).astype(jnp.float32), valid


def _mean_over_classes(
    loss: jax.Array, class_weight: Sequence[float], axis_name: str | None
) -> jax.Array:
    """Mean of loss [B, K] over samples and classes; class weights multiply, the divisor stays a count."""
    count = _total(jnp.ones_like(loss), axis_name)
    return _total(loss * _weights(class_weight, loss.shape[-1])[None, :], axis_name) / count


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
    """Dice loss (arXiv:1606.04797) of softmax probabilities, of every sample and class alone; a scalar, their mean.

    1 - (2 sum p t + smooth) / (sum p^exponent + t^exponent + smooth). masked=False is MMSegmentation 0.x's form, in whose
    denominator ignored pixels stay, as pixels of the last class; by default they are left out everywhere.
    """
    probability, truth, valid = _regions(logits, label)
    overlap = 2 * (probability * truth).sum(1) + smooth
    if not masked:
        probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).reshape(probability.shape)
        truth = truth.at[..., -1].set(jnp.where(valid[..., 0], truth[..., -1], 1))
    size = (probability**exponent + truth**exponent).sum(1) + smooth
    return _mean_over_classes(1 - overlap / size, class_weight, axis_name)


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
    """Tversky loss (arXiv:1706.05721) of softmax probabilities, of every sample and class alone; a scalar, their mean.

    1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth): alpha weighs false positives, beta false negatives.
    """
    probability, truth, valid = _regions(logits, label)
    hit = (probability * truth).sum(1)
    false_positive, false_negative = probability.sum(1) - hit, truth.sum(1) - hit
    index = (hit + smooth) / (hit + alpha * false_positive + beta * false_negative + smooth)
    return _mean_over_classes(1 - index, class_weight, axis_name)


def _lovasz_terms(
    probability: jax.Array, truth: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The Lovász extension of every class's Jaccard loss, [K], and how many pixels it has, [K]; arguments [P, K] and [P, 1]."""
    errors = jnp.where(
        valid, jnp.abs(truth - probability), -1.0
    )  # ignored pixels come last, where they change nothing
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
    """Lovász-softmax loss (arXiv:1705.08790), a surrogate of the mean IoU; a scalar.

    classes: the mean over those 'present' in the labels, or over 'all'. per_image: of every image alone, then their mean;
    otherwise of the device's batch as a whole, and the devices' mean.
    """
    if classes not in ("present", "all"):
        raise ConfigError(
            f"Unknown classes '{classes}' of lovasz: 'present' or 'all'.", field="classes"
        )
    terms = _regions(logits, label)
    if not per_image:
        terms = [x.reshape(1, -1, x.shape[-1]) for x in terms]
    loss, pixels = jax.vmap(_lovasz_terms)(*terms)
    counted = pixels > 0 if classes == "present" else jnp.ones_like(pixels, bool)
    loss = jnp.where(counted, loss * _weights(class_weight, loss.shape[-1])[None, :], 0)
    loss = loss.sum(-1) / jnp.maximum(counted.sum(-1), 1)
    return _total(loss, axis_name) / _total(jnp.ones_like(loss), axis_name)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "point_cross_entropy": point_cross_entropy,
    "class_presence": class_presence,
    "focal": focal,
    "dice": dice,
    "tversky": tversky,
    "lovasz": lovasz,
}


def _arguments(loss: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = {k: v.to_dict() if hasattr(v, "to_dict") else v for k, v in loss.items()}
    return {k: v for k, v in kwargs.items() if k not in ("name", "weight", "target")}


SUPPLIED = (
    "logits",
    "scores",
    "label",
    "points",
    "align_corners",
    "axis_name",
    "options",
)  # parameters that are no options
RANKS = {
    "class_presence": 2,
    "point_cross_entropy": 3,
}  # dimensions of the scores a loss is of; of others: 4


def options_of(name: str) -> tuple[str, ...]:
    """The options that the loss `name` takes in an entry of config.losses, besides name, target and weight."""
    functions = [LOSSES[name], cross_entropy] if name == "point_cross_entropy" else [LOSSES[name]]
    parameters = {
        parameter for function in functions for parameter in inspect.signature(function).parameters
    }
    return tuple(sorted(parameters - set(SUPPLIED)))


def _check_options(key: str, name: str, options: Mapping[str, Any], classes: int | None) -> None:
    """ConfigError, naming the field, for an option that loss `name` does not have or whose value cannot be meant."""
    where, known = f"losses.{key}", dict.fromkeys(options_of(name))
    for option in options:
        lookup(known, option, f"option at config.{where} of {name}:", field=f"{where}.{option}")
    for option, values in (("average", ("all", "valid")), ("classes", ("present", "all"))):
        if option in options:
            lookup(
                dict.fromkeys(values),
                options[option],
                f"config.{where}.{option}",
                field=f"{where}.{option}",
            )
    sampler = options.get("sampler")
    if sampler:
        field = f"{where}.sampler.name"
        lookup({"": False, "ohem": True}, sampler["name"], f"config.{field}", field=field)
    for option in ("class_weight", "alpha"):
        values = options.get(option, ())
        count = len(values) if isinstance(values, tuple | list) else 0
        if tuple(values if count else ()) == AUTO:
            hint = "jaxseg.config.resolve measures it"
            raise ConfigError(
                f"config.{where}.{option} is 'auto'", field=f"{where}.{option}", hint=hint
            )
        if classes is not None and count not in (0, classes):
            raise ConfigError(
                f"config.{where}.{option} has {count} values for {classes} classes", field=f"{where}.{option}",
                hint="give one a class" + (", 'auto', or none" if option == "class_weight" else ", or one for all"),
            )  # fmt: skip


def check_options(config: Any) -> None:
    """Check the options of every entry of config.losses, also against the number of classes where it is known.

    Raises:
        ConfigError: an option that the loss does not have, or that does not fit the classes.
    """
    for key, loss in config.losses.items():
        lookup(LOSSES, loss.name, f"loss at config.losses.{key}", field=f"losses.{key}.name")
        _check_options(key, loss.name, _arguments(loss), config.model.get("num_classes"))


def make_loss(
    config: Any, axis_name: str | None = None
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """The config's weighted sum of losses: f(logits, out, label) -> (scalar, {key: weighted scalar}).

    Each entry of `config.losses` applies to the scores of the same name in `out`, or to those its `target` names, resized to
    the label's size ('decode' is `logits` itself). ConfigError for options that cannot be meant.
    """
    check_options(config)
    terms = {}
    for key, loss in config.losses.items():
        function = functools.partial(LOSSES[loss.name], axis_name=axis_name, **_arguments(loss))
        terms[key] = (loss.get("target", "") or key, loss.weight, function, RANKS.get(loss.name, 4))
    align_corners, names = (
        config.model.align_corners,
        {key: loss.name for key, loss in config.losses.items()},
    )

    def compute(
        logits: jax.Array, out: Mapping[str, jax.Array], label: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        parts = {}
        for key, (target, weight, function, rank) in terms.items():
            field, what = f"losses.{key}.target", f"output for config.losses.{key}"
            scores = logits if target == "decode" else lookup(out, target, what, field=field)
            if scores.ndim != rank:
                raise ConfigError(
                    f"config.losses.{key}: {names[key]} is no loss of the output '{target}', {list(scores.shape)}",
                    field=field,
                    hint=f"it takes scores of {rank} dimensions; choose another loss or target",
                )
            if rank == 4:
                scores = resize_bilinear(scores, label.shape[1:3], align_corners)
            where = dict(points=out["points"], align_corners=align_corners) if rank == 3 else {}
            parts[key] = weight * function(scores, label, **where)
        return sum(parts.values()), parts

    return compute
