"""The layers that models are built from, and `Layers`, which creates them with a model's settings.

`Layers` holds the settings of a whole model (dtype, batch norm, mapped axis, `align_corners`) and
is passed to every backbone, neck and head. Images are [B, H, W, C]; parameters are float32 in every
compute dtype.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxseg.errors import ConfigError
from jaxseg.models.activations import ACTIVATIONS, PReLU
from jaxseg.models.convolution import convolve
from jaxseg.models.initializers import CLASSIFIER, KAIMING, ZEROS, Initializer
from jaxseg.models.normalization import BatchNorm
from jaxseg.models.pooling import adaptive_avg_pool
from jaxseg.ops import normalize as normalize
from jaxseg.ops import per_channel, resize_bilinear
from jaxseg.registry import check_name

Features = Sequence[jax.Array]  # a backbone's maps [B, h_i, w_i, C_i], finest first
HeadOutput = tuple[jax.Array, dict[str, jax.Array]]  # scores [B, h, w, K], outputs for losses


def second_stage_error(head: str) -> ConfigError:
    """Make the error for a head that needs the scores of an earlier stage but gets none."""
    return ConfigError(
        f"{head} is the second stage of a cascade and needs the scores of an earlier one",
        field="model.heads",
        hint="add a head stage_0, for instance an FCN head",
    )


# --- Layers ---------------------------------------------------------------------------------------


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = (value, value) if isinstance(value, int) else value
    return vertical, horizontal


class Conv(nn.Module):
    """Convolution with PyTorch's explicit padding: [B, H, W, C] to [B, H', W', features].

    Attributes:
        features: Channels of the result.
        kernel_size: (height, width) of the kernel, or one number for both.
        stride: Step in pixels.
        padding: Zeros on every side, or (vertical, horizontal), or 'same' for TensorFlow's rule
            (more at the bottom and right). None keeps the size at stride 1 for odd kernels.
        dilation: Distance between neighbouring kernel elements in pixels.
        groups: Number of channel groups that are convolved separately.
        use_bias: Whether to add a bias.
        dtype: Type of the computation and the result.
        kernel_init: Initialiser of the kernel [kh, kw, C / groups, features].
        bias_init: Initialiser of the bias [features].
    """

    features: int
    kernel_size: int | tuple[int, int] = 1
    stride: int = 1
    padding: int | tuple[int, int] | str | None = None
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = KAIMING
    bias_init: Initializer = ZEROS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve images."""
        size = _pair(self.kernel_size)
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=_pair(self.stride),
            padding=self._pads(x.shape[1:3], size),
            dilation=_pair(self.dilation),
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            x = x + per_channel(bias, 4).astype(self.dtype)
        return x

    def _pads(
        self, image_size: Sequence[int], kernel_size: tuple[int, int]
    ) -> list[tuple[int, int]]:
        """((top, bottom), (left, right)) in pixels."""
        if isinstance(self.padding, str):
            check_name(("same",), self.padding, "padding of a convolution")
            total = [
                max((-(-n // self.stride) - 1) * self.stride + self.dilation * (k - 1) + 1 - n, 0)
                for n, k in zip(image_size, kernel_size)
            ]
            return [(t // 2, t - t // 2) for t in total]
        if self.padding is None:
            return [(self.dilation * (k // 2), self.dilation * (k // 2)) for k in kernel_size]
        return [(p, p) for p in _pair(self.padding)]


def sample_keys(key: jax.Array, batch: int, axis_name: str | None) -> jax.Array:
    """Make one random key for each sample of the global batch.

    Random numbers then do not depend on the number of devices that share the batch.

    Args:
        key: A key that all devices share.
        batch: Samples on this device.
        axis_name: Mapped axis over which the batch is split; None for a single device.

    Returns:
        Keys [B] of this device's samples.
    """
    offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, (None, 0))(key, offset + jnp.arange(batch))


class ChannelDropout(nn.Module):
    """Dropout of whole channels, like PyTorch's Dropout2d, with the random stream 'dropout'.

    Attributes:
        rate: Probability of dropping a channel of a sample.
        axis_name: Mapped axis over which the batch is split; None for a single device.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drop channels of x [B, H, W, C] in training."""
        if not train or self.rate <= 0:
            return x
        axis_name = None if self.is_initializing() else self.axis_name
        keys = sample_keys(self.make_rng("dropout"), x.shape[0], axis_name)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[-1:]))(keys)
        return jnp.where(keep[:, None, None, :], x / (1 - self.rate), 0).astype(x.dtype)


class ConvNormAct(nn.Module):
    """Convolution, batch norm and activation: [B, H, W, C] to [B, H', W', F].

    Its children are `conv`, `bn` and, for PReLU, `activate`.

    Attributes:
        conv: Constructor of the convolution, which lacks only a name.
        norm: Constructor of the norm, which lacks only a name; None for no norm.
        activation: A name in `ACTIVATIONS`, or 'prelu'.
    """

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Apply the three in turn."""
        x = self.conv(name="conv")(x)
        if self.norm is not None:
            x = self.norm(name="bn")(x, train=train)
        if self.activation == "prelu":
            return PReLU(name="activate")(x)
        return ACTIVATIONS[self.activation](x)


class SeparableConv(nn.Module):
    """Depthwise, then pointwise convolution, each with norm and activation (arXiv:1610.02357).

    Attributes:
        layer: The model's settings.
        features: Channels of the result.
        kernel_size: Height and width of the depthwise kernel.
        stride: Step of the depthwise convolution in pixels.
        dilation: Dilation of the depthwise convolution.
        depthwise_activation: Activation after the depthwise convolution; None for the model's.
    """

    layer: "Layers"
    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    depthwise_activation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Convolve images [B, H, W, C] to [B, H', W', features]."""
        depthwise = self.layer.conv_norm_act(
            x.shape[-1],
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            groups=x.shape[-1],
            activation=self.depthwise_activation,
            name="depthwise_conv",
        )
        pointwise = self.layer.conv_norm_act(self.features, 1, name="pointwise_conv")
        return pointwise(depthwise(x, train=train), train=train)


# --- A model's settings ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layers:
    """The settings of a whole model, and methods that create its layers.

    Call the methods inside a compact module.

    Attributes:
        dtype: Type of the computation.
        axis_name: Mapped axis that batch norm and dropout span; None for a single device.
        momentum: Share of the old running statistics that stays at each step.
        epsilon: Added to the variance by batch norm.
        activation: The activation of layers that name none.
        align_corners: How bilinear resizing treats corners.
        dropout_rate: Probability of dropping a channel before a classifier.
        frozen_statistics: Paths 'a/b/c' of the modules that use their running statistics in
            training and do not update them.
    """

    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    activation: str = "relu"
    align_corners: bool = False
    dropout_rate: float = 0.1
    frozen_statistics: tuple[str, ...] = ()

    def conv(self, features: int, kernel_size: int | tuple[int, int] = 1, **kwargs: Any) -> Conv:
        """Make a convolution without norm or activation; `kwargs` are arguments of `Conv`."""
        return Conv(features, kernel_size, dtype=self.dtype, **kwargs)

    def norm(self, **kwargs: Any) -> BatchNorm:
        """Make a batch norm; `kwargs` are arguments of `BatchNorm`."""
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
        kernel_size: int | tuple[int, int] = 1,
        *,
        norm: bool = True,
        activation: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> ConvNormAct:
        """Make a convolution with norm and activation.

        Args:
            features: Channels of the result.
            kernel_size: (height, width) of the kernel, or one number for both.
            norm: Whether to add a norm; without one the convolution has a bias.
            activation: Name of the activation; None for the model's.
            name: Name of the module.
            **kwargs: Further arguments of `Conv`.

        Returns:
            The module.
        """
        conv = functools.partial(
            self.conv, features, kernel_size, **{"use_bias": not norm} | kwargs
        )
        make_norm = self.norm if norm else None
        return ConvNormAct(conv, make_norm, activation or self.activation, name=name)

    def separable_conv(
        self, features: int, kernel_size: int = 3, *, name: str | None = None, **kwargs: Any
    ) -> SeparableConv:
        """Make a separable convolution; `kwargs` are arguments of `SeparableConv`."""
        return SeparableConv(self, features, kernel_size, name=name, **kwargs)

    def dropout(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drop whole channels of x [B, H, W, C] at the model's rate in training."""
        return ChannelDropout(self.dropout_rate, self.axis_name)(x, train=train)

    def classify(
        self, x: jax.Array, num_classes: int, *, train: bool, name: str = "conv_seg"
    ) -> jax.Array:
        """Compute class scores with dropout and a 1x1 convolution.

        Args:
            x: Features [B, h, w, C].
            num_classes: Number of classes K.
            train: Whether to train.
            name: Name of the convolution.

        Returns:
            Class scores [B, h, w, K], float32.
        """
        x = self.dropout(x, train=train)
        conv = self.conv(num_classes, 1, use_bias=True, kernel_init=CLASSIFIER, name=name)
        return conv(x).astype(jnp.float32)

    def resize(self, x: jax.Array, size: Sequence[int]) -> jax.Array:
        """Resize x [B, h, w, C] bilinearly to `size` (H, W) with the model's `align_corners`."""
        return resize_bilinear(x, size, self.align_corners)

    def pyramid_pool(
        self, x: jax.Array, channels: int, scales: Sequence[int], *, train: bool, name: str
    ) -> jax.Array:
        """Concatenate a map with its averages on several grids (arXiv:1612.01105).

        Args:
            x: Features [B, h, w, C].
            channels: Channels of each pool after its 1x1 convolution.
            scales: Heights and widths of the square grids.
            train: Whether to train.
            name: Prefix of the names of the convolutions.

        Returns:
            Features [B, h, w, C + len(scales) * channels].
        """
        joined = [x.astype(self.dtype)]
        for i, scale in enumerate(scales):
            conv = self.conv_norm_act(channels, 1, name=f"{name}.{i}.1")
            pooled = conv(adaptive_avg_pool(x, scale), train=train)
            joined.append(self.resize(pooled, x.shape[1:3]))
        return jnp.concatenate(joined, axis=-1)
