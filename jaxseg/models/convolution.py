"""Convolution, with a fast form for each platform.

`convolve` is the one place that decides how a convolution is lowered. XLA's own convolution is the
best choice on GPU and TPU. On CPU it is about 10 times slower than a sum of shifted products for
depthwise kernels, and for 1x1 kernels its gradient is 2 to 3 times slower than the gradient of a
matrix product. These two kinds are therefore JAX primitives, lowered with
`jax.lax.platform_dependent`: a program exported on one platform contains the right form for the
platform that runs it.

A convolution is bilinear in image and kernel. Together with its two gradients it forms a set of
three bilinear operations, in which the transposes of each operation are the other two. All of
forward mode, reverse mode and their combinations therefore reduce to the forms below.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseg.ops import per_channel

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel moves over an image; all pairs are (vertical, horizontal).

    Attributes:
        image_size: Height and width of the image in pixels.
        kernel_size: Height and width of the kernel.
        stride: Steps of the kernel in pixels.
        padding: Zeros added as ((top, bottom), (left, right)).
        dilation: Distance in pixels between neighbouring kernel elements.
        groups: Number of channel groups that are convolved separately.
    """

    image_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int

    @property
    def output_size(self) -> list[int]:
        """Height and width of the result."""
        return [
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.image_size, self.kernel_size, self.stride, self.padding, self.dilation
            )
        ]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: Pair = (1, 1),
    padding: Sequence[Pair] = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """Convolve images with a kernel.

    Args:
        x: Images [B, H, W, C].
        kernel: Kernel [kh, kw, C / groups, F] of the images' dtype.
        stride: (vertical, horizontal) step in pixels.
        padding: Zeros to add as ((top, bottom), (left, right)).
        dilation: (vertical, horizontal) distance between neighbouring kernel elements in pixels.
        groups: Number of channel groups that are convolved separately.

    Returns:
        Images [B, H', W', F] of the same dtype.
    """
    rows, columns = padding
    geometry = Geometry(
        image_size=_pair(x.shape[1:3]),
        kernel_size=_pair(kernel.shape[:2]),
        stride=_pair(stride),
        padding=(_pair(rows), _pair(columns)),
        dilation=_pair(dilation),
        groups=groups,
    )
    pointwise = kernel.shape[:2] == (1, 1) and groups == 1 and not any((*rows, *columns))
    depthwise = groups == x.shape[-1] == kernel.shape[-1] and groups > 1
    if pointwise or depthwise:
        x, kernel = _vary_like(x, kernel), _vary_like(kernel, x)
        return _convolution_p.bind(x, kernel, geometry=geometry)
    return _xla(x, kernel, geometry)


def _pair(values: Sequence[int]) -> Pair:
    vertical, horizontal = values
    return vertical, horizontal


def _varying_axes(x: jax.Array) -> frozenset[str]:
    """The axes of an enclosing shard_map(check_vma=True) along which `x` varies."""
    kind = jax.typeof(x)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return getattr(kind, "vma", frozenset())  # JAX 0.9 and earlier


def _vary_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` marked as varying where `other` does, so that a shared kernel's gradient is summed."""
    axes = tuple(_varying_axes(other) - _varying_axes(x))
    if not axes:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return jax.lax.pvary(x, axes)  # type: ignore[attr-defined] # before JAX 0.8


# --- Forms ----------------------------------------------------------------------------------------


def _xla(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """XLA's convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        feature_group_count=geometry.groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _pointwise(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A 1x1 convolution as a matrix product."""
    vertical, horizontal = geometry.stride
    return x[:, ::vertical, ::horizontal, :] @ kernel[0, 0]


def _image_gradient_of(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The transpose of a form with respect to its image."""

    def transpose(gradient: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
        channels = kernel.shape[2] * geometry.groups
        shape = (gradient.shape[0], *geometry.image_size, channels)
        image = jax.lax.full_like(gradient, 0, shape=shape)
        return jax.linear_transpose(lambda x: form(x, kernel, geometry), image)(gradient)[0]

    return transpose


def _kernel_gradient_of(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The transpose of a form with respect to its kernel."""

    def transpose(x: jax.Array, gradient: jax.Array, geometry: Geometry) -> jax.Array:
        channels = x.shape[-1] // geometry.groups
        shape = (*geometry.kernel_size, channels, gradient.shape[-1])
        kernel = jax.lax.full_like(gradient, 0, shape=shape)
        return jax.linear_transpose(lambda k: form(x, k, geometry), kernel)(gradient)[0]

    return transpose


def _taps(geometry: Geometry, size: Sequence[int]) -> list[tuple[slice, slice]]:
    """The rows and columns of a padded image that each kernel element multiplies."""
    rows, columns = (
        [slice(i * d, i * d + s * (n - 1) + 1, s) for i in range(k)]
        for k, n, s, d in zip(geometry.kernel_size, size, geometry.stride, geometry.dilation)
    )
    return [(vertical, horizontal) for vertical in rows for horizontal in columns]


def _pad(x: jax.Array, geometry: Geometry) -> jax.Array:
    return jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))


def _shifted_products(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """A depthwise convolution as a sum of shifted images, each times one kernel element."""
    x = _pad(x, geometry)
    weights = kernel.reshape(-1, kernel.shape[-1])
    products = [
        x[:, rows, columns, :] * per_channel(weights[i], 4)
        for i, (rows, columns) in enumerate(_taps(geometry, geometry.output_size))
    ]
    return sum(products[1:], products[0])


def _shifted_products_image_gradient(
    gradient: jax.Array, kernel: jax.Array, geometry: Geometry
) -> jax.Array:
    """The same sum with the kernel flipped.

    It is written out because autodiff turns each slice into a pad, which is 5 to 15 times slower.
    """
    edges = [
        (d * (k - 1), n + sum(p) - (s * (m - 1) + 1), s - 1)
        for k, n, m, p, s, d in zip(
            geometry.kernel_size,
            geometry.image_size,
            gradient.shape[1:3],
            geometry.padding,
            geometry.stride,
            geometry.dilation,
        )
    ]
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    dense = geometry._replace(
        image_size=_pair(spread.shape[1:3]), stride=(1, 1), padding=((0, 0), (0, 0))
    )
    image = _shifted_products(spread, kernel[::-1, ::-1], dense)
    (top, _), (left, _) = geometry.padding
    height, width = geometry.image_size
    return image[:, top : top + height, left : left + width, :]


def _shifted_products_kernel_gradient(
    x: jax.Array, gradient: jax.Array, geometry: Geometry
) -> jax.Array:
    """The gradient of each kernel element: the sum of the shifted image times the gradient.

    The barrier keeps XLA from fusing the sums with the slices, which is 5 to 15 times slower.
    """
    x = _pad(x, geometry)
    products = [
        jax.lax.optimization_barrier(x[:, rows, columns, :] * gradient)
        for rows, columns in _taps(geometry, gradient.shape[1:3])
    ]
    sums = jnp.stack([product.sum((0, 1, 2)) for product in products])
    return sums.reshape(*geometry.kernel_size, 1, x.shape[-1])


# --- Primitives -----------------------------------------------------------------------------------


def _by_platform(
    pointwise: Callable[..., jax.Array],
    depthwise: Callable[..., jax.Array],
    default: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
    """An operation with `pointwise` or `depthwise` on CPU, by its geometry, else `default`."""

    def operation(a: jax.Array, b: jax.Array, *, geometry: Geometry) -> jax.Array:
        form = depthwise if geometry.groups > 1 else pointwise
        return jax.lax.platform_dependent(
            a,
            b,
            cpu=functools.partial(form, geometry=geometry),
            default=functools.partial(default, geometry=geometry),
        )

    return operation


def _primitive(
    name: str, operation: Callable[..., jax.Array], shape: Callable[..., tuple[int, ...]]
) -> Primitive:
    """A primitive that computes `operation`.

    Its result has the shape `shape(a, b, geometry)` and the first operand's dtype.
    """

    def abstract(a: ShapedArray, b: ShapedArray, *, geometry: Geometry) -> ShapedArray:
        return a.update(shape=shape(a, b, geometry))

    def batch(
        operands: tuple[jax.Array, jax.Array],
        axes: tuple[int | None, int | None],
        *,
        geometry: Geometry,
    ) -> tuple[jax.Array, int]:
        if axes[0] is None or axes[1] is not None:
            return jax.vmap(functools.partial(operation, geometry=geometry), axes)(*operands), 0
        # Only images [N, B, H, W, C] are batched: merging N and B keeps the primitive and its fast
        # transposes.
        images = jnp.moveaxis(operands[0], axes[0], 0)
        result = primitive.bind(
            images.reshape(-1, *images.shape[2:]), operands[1], geometry=geometry
        )
        return result.reshape(*images.shape[:2], *result.shape[1:]), 0

    primitive = Primitive(name)
    primitive.def_impl(jax.jit(operation, static_argnames="geometry"))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(operation, multiple_results=False))
    return primitive


def _convolution_shape(x: ShapedArray, kernel: ShapedArray, geometry: Geometry) -> tuple[int, ...]:
    return (x.shape[0], *geometry.output_size, kernel.shape[3])


def _image_shape(gradient: ShapedArray, kernel: ShapedArray, geometry: Geometry) -> tuple[int, ...]:
    return (gradient.shape[0], *geometry.image_size, kernel.shape[2] * geometry.groups)


def _kernel_shape(x: ShapedArray, gradient: ShapedArray, geometry: Geometry) -> tuple[int, ...]:
    return (*geometry.kernel_size, x.shape[3] // geometry.groups, gradient.shape[3])


_convolution_p = _primitive(
    "convolution", _by_platform(_pointwise, _shifted_products, _xla), _convolution_shape
)
_image_gradient_p = _primitive(
    "convolution_image_gradient",
    _by_platform(
        _image_gradient_of(_pointwise),
        _shifted_products_image_gradient,
        _image_gradient_of(_xla),
    ),
    _image_shape,
)
_kernel_gradient_p = _primitive(
    "convolution_kernel_gradient",
    _by_platform(
        _kernel_gradient_of(_pointwise),
        _shifted_products_kernel_gradient,
        _kernel_gradient_of(_xla),
    ),
    _kernel_shape,
)


# The transposes with respect to each operand, whose own value is absent.


def _convolution_to_image(
    ct: jax.Array, _: Any, kernel: jax.Array, **geometry: Geometry
) -> jax.Array:
    return _image_gradient_p.bind(ct, kernel, **geometry)


def _convolution_to_kernel(ct: jax.Array, x: jax.Array, _: Any, **geometry: Geometry) -> jax.Array:
    return _kernel_gradient_p.bind(x, ct, **geometry)


def _image_gradient_to_gradient(
    ct: jax.Array, _: Any, kernel: jax.Array, **geometry: Geometry
) -> jax.Array:
    return _convolution_p.bind(ct, kernel, **geometry)


def _image_gradient_to_kernel(
    ct: jax.Array, gradient: jax.Array, _: Any, **geometry: Geometry
) -> jax.Array:
    return _kernel_gradient_p.bind(ct, gradient, **geometry)


def _kernel_gradient_to_image(
    ct: jax.Array, _: Any, gradient: jax.Array, **geometry: Geometry
) -> jax.Array:
    return _image_gradient_p.bind(gradient, ct, **geometry)


def _kernel_gradient_to_gradient(
    ct: jax.Array, x: jax.Array, _: Any, **geometry: Geometry
) -> jax.Array:
    return _convolution_p.bind(x, ct, **geometry)


ad.defbilinear(_convolution_p, _convolution_to_image, _convolution_to_kernel)
ad.defbilinear(_image_gradient_p, _image_gradient_to_gradient, _image_gradient_to_kernel)
ad.defbilinear(_kernel_gradient_p, _kernel_gradient_to_image, _kernel_gradient_to_gradient)
