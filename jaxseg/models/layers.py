"""What every model is made of: convolution, batch norm, dropout, pooling, resizing, normalisation of images.

Each is written once, here, because each hides a difference between PyTorch and XLA that costs parity or speed when it
is written twice. `Layers` binds the choices that hold for a whole model (dtype, batch-norm settings, cross-replica
axis, `align_corners`) and is handed to every backbone, neck and head.

Arrays are [B, H, W, C]. Parameters are float32 whatever the compute dtype.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.errors import ConfigError
from jaxseg.models.activations import ACTIVATIONS, PReLU
from jaxseg.models.convolution import convolve
from jaxseg.models.initializers import CLASSIFIER, KAIMING, ONES, ZEROS, Initializer
from jaxseg.ops import _apply_matrices, per_channel, resize_bilinear

# --- Convolution ------------------------------------------------------------------------------------------------------


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class Conv(nn.Module):
    """Convolution with PyTorch's explicit padding: [B, H, W, C] -> [B, H', W', features]; the one that holds kernels.

    padding: pixels on every side, (vertical, horizontal), or 'same' for TensorFlow's rule (more at the bottom and right);
    the default keeps the size at stride 1 for odd kernels.
    """

    features: int
    kernel_size: int | tuple[int, int] = 1
    stride: int = 1
    padding: int | tuple[int, int] | str | None = None
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Initializer = KAIMING
    bias_init: Initializer = ZEROS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = _pair(self.kernel_size)
        kernel = self.param(
            "kernel", self.kernel_init, (*size, x.shape[-1] // self.groups, self.features)
        )
        if self.padding == "same":
            total = [
                max((-(-n // self.stride) - 1) * self.stride + self.dilation * (k - 1) + 1 - n, 0)
                for n, k in zip(x.shape[1:3], size)
            ]
            padding = [(t // 2, t - t // 2) for t in total]
        else:
            padding = [
                (p, p)
                for p in _pair(
                    [self.dilation * (k // 2) for k in size]
                    if self.padding is None
                    else self.padding
                )
            ]
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = convolve(x, kernel, _pair(self.stride), padding, _pair(self.dilation), self.groups)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            x = x + per_channel(bias, 4).astype(self.dtype)
        return x


# --- Normalisation and dropout ----------------------------------------------------------------------------------------


FEW_VALUES = 16384  # a channel and device: so few that a second pass over them costs little


def _single_value_error(module: str, shape: tuple[int, ...]) -> ConfigError:
    """The running variance would decay to 0, and evaluation, which divides by it, would be noise."""
    size = "x".join(map(str, shape[1:-1]))
    return ConfigError(
        f"batch norm at {module} has 1 value per channel to normalise in training (one sample of "
        f"{size} on all devices), whose variance is 0",
        field="batch_size",
        hint="train on 2 samples or more at once (batch_size=2) or, where the map is this small "
        "because the image is, with a larger dataset.crop_size",
    )


class BatchNorm(nn.Module):
    """Batch normalisation over every axis but the last, across `axis_name` if given; statistics in float32.

    As in PyTorch, the running variance takes the unbiased estimate while the batch is divided by the biased one. Moments are
    taken about the running mean, so that one pass is accurate although it subtracts two large numbers; pooled maps, whose few
    values may lie close together and far from the running mean, take a second pass.

    frozen: paths of the modules, "a/b/c", that use their running statistics in training too and leave them as they are.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32
    scale_init: Initializer = ONES
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", ZEROS, (channels,))
        running_mean = self.variable("batch_stats", "mean", ZEROS, None, (channels,))
        running_var = self.variable("batch_stats", "var", ONES, None, (channels,))
        mean, var = running_mean.value, running_var.value
        if train and "/".join(self.path) not in self.frozen:
            axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
            if count <= FEW_VALUES:
                mean = x.astype(jnp.float32).mean(axes)
                mean = (
                    mean
                    if self.axis_name is None or self.is_initializing()
                    else jax.lax.pmean(mean, self.axis_name)
                )
            shift = jax.lax.stop_gradient(mean)
            centred = x.astype(jnp.float32) - per_channel(shift, x.ndim)
            moments = jnp.stack([centred.mean(axes), jnp.square(centred).mean(axes)])
            if self.axis_name is not None and not self.is_initializing():
                moments = jax.lax.pmean(moments, self.axis_name)
                count *= jax.lax.axis_size(self.axis_name)
            if count == 1 and not self.is_initializing():
                raise _single_value_error("/".join(self.path), x.shape)
            mean, var = moments[0] + shift, jnp.maximum(moments[1] - jnp.square(moments[0]), 0.0)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = (
                    self.momentum * running_var.value + (1 - self.momentum) * unbiased
                )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        mean, factor, bias = (per_channel(v, x.ndim) for v in (mean, factor, bias))
        normalised = (x.astype(jnp.float32) - mean) * factor + bias
        return normalised.astype(self.dtype)


def sample_keys(key: jax.Array, batch: int, axis_name: str | None) -> jax.Array:
    """One key per sample of the global batch, so that randomness does not depend on how many devices share it: [B] keys."""
    offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, (None, 0))(key, offset + jnp.arange(batch))


class ChannelDropout(nn.Module):
    """Dropout of whole channels per sample (PyTorch's Dropout2d), RNG stream 'dropout'."""

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate <= 0:
            return x
        keys = sample_keys(
            self.make_rng("dropout"), x.shape[0], None if self.is_initializing() else self.axis_name
        )
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[-1:]))(keys)
        return jnp.where(keep[:, None, None, :], x / (1 - self.rate), 0).astype(x.dtype)


# --- Resizing and pooling ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _averaging(source: int, target: int) -> np.ndarray:
    """Averages over PyTorch's adaptive-pooling bins, floor(i n / s) to ceil((i + 1) n / s), as a [target, source] matrix."""
    matrix = np.zeros((target, source), np.float32)
    for i in range(target):
        start, stop = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def adaptive_avg_pool(x: jax.Array, size: int | Sequence[int]) -> jax.Array:
    """Average pool of [B, H, W, C] to a fixed grid with PyTorch's bins."""
    if _pair(size) == (
        1,
        1,
    ):  # row by row: XLA on CPU adds thousands of numbers one by one, which costs digits
        return x.mean(2, keepdims=True, dtype=jnp.float32).mean(1, keepdims=True).astype(x.dtype)
    matrices = [None if n == m else _averaging(n, m) for n, m in zip(x.shape[1:3], _pair(size))]
    return _apply_matrices(x, *matrices)


def max_pool(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """Max pool of [B, H, W, C]; padded pixels never win."""
    return nn.max_pool(
        x,
        window_shape=(window, window),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
    )


def avg_pool(
    x: jax.Array,
    window: int,
    stride: int,
    padding: int = 0,
    count_include_pad: bool = True,
    ceil_mode: bool = False,
) -> jax.Array:
    """Average pool of [B, H, W, C] as PyTorch's AvgPool2d; with `ceil_mode` a last partial window counts."""
    pads = [(padding, padding)] * 2
    if ceil_mode:
        pads = [(padding, padding + (-(n + 2 * padding - window)) % stride) for n in x.shape[1:3]]
    return nn.avg_pool(
        x, (window, window), (stride, stride), pads, count_include_pad=count_include_pad
    )


# --- Composites -------------------------------------------------------------------------------------------------------


class ConvNormAct(nn.Module):
    """Convolution, batch norm, activation: [B, H, W, C] -> [B, H', W', F]. Children `conv`, `bn`, `activate`."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.conv(name="conv")(x)
        if self.norm is not None:
            x = self.norm(name="bn")(x, train=train)
        return (
            PReLU(name="activate")(x)
            if self.activation == "prelu"
            else ACTIVATIONS[self.activation](x)
        )


class SeparableConv(nn.Module):
    """Depthwise then pointwise convolution, each with norm and activation (arXiv:1610.02357)."""

    layer: "Layers"
    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    depthwise_activation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.layer.conv_norm_act(
            x.shape[-1], self.kernel_size, stride=self.stride, dilation=self.dilation, groups=x.shape[-1],
            activation=self.depthwise_activation, name="depthwise_conv",
        )(x, train=train)  # fmt: skip
        return self.layer.conv_norm_act(self.features, 1, name="pointwise_conv")(x, train=train)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The choices that hold throughout a model; makes its layers. Call the methods inside a compact module."""

    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    activation: str = "relu"
    align_corners: bool = False
    dropout_rate: float = 0.1
    frozen_statistics: tuple[
        str, ...
    ] = ()  # paths of modules, "a/b/c", whose running statistics training leaves alone

    def conv(self, features: int, kernel_size=1, **kwargs) -> Conv:
        """A bare convolution (see Conv)."""
        return Conv(features, kernel_size, dtype=self.dtype, **kwargs)

    def norm(self, **kwargs) -> BatchNorm:
        """Batch norm, synchronised over the model's axis."""
        return BatchNorm(
            self.momentum,
            self.epsilon,
            self.axis_name,
            self.dtype,
            frozen=self.frozen_statistics,
            **kwargs,
        )

    def conv_norm_act(
        self,
        features: int,
        kernel_size=1,
        *,
        norm: bool = True,
        activation: str | None = None,
        name=None,
        **kwargs,
    ) -> ConvNormAct:
        """Convolution, norm, activation (None: the model's); without a norm the convolution has a bias."""
        conv = functools.partial(
            self.conv, features, kernel_size, **{"use_bias": not norm} | kwargs
        )
        return ConvNormAct(
            conv, self.norm if norm else None, activation or self.activation, name=name
        )

    def separable_conv(
        self, features: int, kernel_size: int = 3, *, name=None, **kwargs
    ) -> SeparableConv:
        """Depthwise-separable convolution with norms and activations."""
        return SeparableConv(self, features, kernel_size, name=name, **kwargs)

    def dropout(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drop whole channels at the model's rate."""
        return ChannelDropout(self.dropout_rate, self.axis_name)(x, train=train)

    def classify(
        self, x: jax.Array, num_classes: int, *, train: bool, name: str = "conv_seg"
    ) -> jax.Array:
        """Dropout and a 1x1 convolution to class scores [B, h, w, K], float32."""
        x = self.dropout(x, train=train)
        return self.conv(num_classes, 1, use_bias=True, kernel_init=CLASSIFIER, name=name)(
            x
        ).astype(jnp.float32)

    def resize(self, x: jax.Array, size: Sequence[int]) -> jax.Array:
        """Bilinear resize with the model's `align_corners`."""
        return resize_bilinear(x, size, self.align_corners)

    def pyramid_pool(
        self, x: jax.Array, channels: int, scales: Sequence[int], *, train: bool, name: str
    ) -> jax.Array:
        """x [B, h, w, C] and its average pools on grids of `scales`, projected: [B, h, w, C + len(scales) * channels] (arXiv:1612.01105)."""
        joined = [x.astype(self.dtype)]
        for i, scale in enumerate(scales):
            pooled = self.conv_norm_act(channels, 1, name=f"{name}.{i}.1")(
                adaptive_avg_pool(x, scale), train=train
            )
            joined.append(self.resize(pooled, x.shape[1:3]))
        return jnp.concatenate(joined, axis=-1)
