"""Convolution passes on the CPU in pure JAX, mostly as matrix products.

XLA:CPU's matrix products are as fast as any library's. Its convolutions are not, and its gradients
of convolutions for the kernel are slow, so every pass that can be matrix products is computed as
such. docs/performance.md describes the choices.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.kernels import im2col, winograd
from resflax.kernels.conv_params import ConvParams, ConvPass, Shape, xla_conv
from resflax.kernels.depth import convolve_slices
from resflax.kernels.im2col import pixels_under
from resflax.kernels.materialize import materialize_on_cpu
from resflax.kernels.varying import vary_over, varying_axes
from resflax.kernels.winograd import channel_outer_product

# Largest chunk of a batch, so that the intermediate arrays of a chunk stay in the CPU's cache.
CHUNK_BYTES = 4_000_000
# Largest size of a member's patches for which members are computed as one batched product.
MAX_PATCH_BYTES = 1_500_000
# With fewer input channels (stems), XLA's own kernel gradient is as fast as matrix products.
MIN_WGRAD_CHANNELS = 8
# With fewer channels, one product per kernel position is too narrow: ROW_BLOCK pixels are joined.
MIN_TAP_CHANNELS = 32
ROW_BLOCK = 4
# With fewer channels, or fewer pixels per channel, Winograd's transforms cost more than they save.
MIN_WINOGRAD_CHANNELS = 32
MIN_WINOGRAD_PIXELS_PER_CHANNEL = 8


def convolve(
    conv_pass: ConvPass,
    lhs: Float[Array, " *shape"],
    rhs: Float[Array, " *shape"],
    params: ConvParams,
    *,
    chunked: bool,
) -> Float[Array, " *shape"]:
    """Computes a pass of float32 or bfloat16 arrays, in float32.

    Axes before the last `params.rank` are mapped. `chunked` allows loops over chunks of the batch,
    which XLA cannot partition over a mesh.
    """
    if params.rank > 4:
        run_volumes = partial(convolve, conv_pass, params=params, chunked=chunked)
        if lhs.ndim > params.rank:
            return lax.map(lambda pair: run_volumes(*pair), (lhs, rhs))
        volumes = (lhs.astype(jnp.float32), rhs.astype(jnp.float32))
        run_images = partial(convolve, chunked=chunked)
        return convolve_slices(run_images, conv_pass, *volumes, params).astype(lhs.dtype)
    if lhs.ndim > 4 and _fits_im2col(conv_pass, lhs.shape[-4:], rhs.shape[-4:], params):
        return _convolve_members_by_im2col(conv_pass, lhs, rhs, params)
    if lhs.ndim > 4:
        run_one = partial(convolve, conv_pass, params=params, chunked=chunked)
        if _is_pointwise(params):
            return jax.vmap(run_one)(lhs, rhs)
        return lax.map(lambda pair: run_one(*pair), (lhs, rhs))
    dtype = lhs.dtype
    lhs, rhs = lhs.astype(jnp.float32), rhs.astype(jnp.float32)
    if not _is_pointwise(params):  # XLA materializes the operands of a single product anyway
        lhs, rhs = materialize_on_cpu(lhs), materialize_on_cpu(rhs) if conv_pass == "wgrad" else rhs
    run = {"fwd": _forward, "dgrad": _image_gradient, "wgrad": _kernel_gradient}[conv_pass]
    return run(lhs, rhs, params, chunked).astype(dtype)


def _fits_im2col(conv_pass: ConvPass, lhs: Shape, rhs: Shape, params: ConvParams) -> bool:
    x = params.result_shape("dgrad", lhs, rhs) if conv_pass == "dgrad" else lhs
    if conv_pass == "wgrad" and x[3] < MIN_WGRAD_CHANNELS:
        return False
    is_small = im2col.patch_bytes(x, params) <= MAX_PATCH_BYTES
    return is_small and params.groups == 1 and not params.crops and not _is_pointwise(params)


def _convolve_members_by_im2col(
    conv_pass: ConvPass, lhs: Array, rhs: Array, params: ConvParams
) -> Array:
    run = {
        "fwd": im2col.convolve,
        "dgrad": im2col.image_gradient,
        "wgrad": im2col.kernel_gradient,
    }[conv_pass]
    operands = tuple(materialize_on_cpu(a.astype(jnp.float32)) for a in (lhs, rhs))
    return jax.vmap(partial(run, params=params))(*operands).astype(lhs.dtype)


def _forward(x: Array, w: Array, params: ConvParams, chunked: bool) -> Array:
    if _is_pointwise(params):
        return lax.dot_general(_subsample(x, params), w[0, 0], (((3,), (0,)), ((), ())))
    pixels = len(x) * params.output_size[0] * params.output_size[1]
    if _fits_winograd(params) and _is_winograd_faster(pixels, w):
        run = partial(winograd.convolve, w=w, padding=params.padding)
        return _map_chunks(run, x, _num_chunks(x) if chunked else 1)
    return xla_conv("fwd", x, w, params)


def _image_gradient(g: Array, w: Array, params: ConvParams, chunked: bool) -> Array:
    if _is_pointwise(params):
        dx = lax.dot_general(g, w[0, 0], (((3,), (1,)), ((), ())))
        pads = ((0, 0, 0), *_subsample_transpose_padding(params), (0, 0, 0))
        return lax.pad(dx, jnp.zeros((), dx.dtype), pads)
    if params.strides == (1, 1) and params.groups == 1:
        # The gradient is a convolution of g with the flipped kernel.
        reach = [d * (k - 1) for k, d in zip(params.kernel_size, params.dilation, strict=True)]
        height, width = (
            (r - low, r - high) for r, (low, high) in zip(reach, params.padding, strict=True)
        )
        flipped = jnp.flip(w, (0, 1)).swapaxes(2, 3)
        transposed = params._replace(image_size=params.output_size, padding=(height, width))
        return _forward(g, flipped, transposed, chunked)
    run_xla = xla_convolve if chunked else xla_conv
    return run_xla("dgrad", g, w, params)


def _kernel_gradient(x: Array, g: Array, params: ConvParams, chunked: bool) -> Array:
    if _is_pointwise(params):
        return channel_outer_product(_subsample(x, params), g)[None, None]
    if params.crops or params.groups > 1 or x.shape[3] < MIN_WGRAD_CHANNELS:
        run_xla = xla_convolve if chunked else xla_conv
        return run_xla("wgrad", x, g, params)
    is_narrow = min(x.shape[3], g.shape[3]) < MIN_TAP_CHANNELS
    if params.strides == params.dilation == (1, 1) and is_narrow:
        run = partial(_kernel_gradient_by_row_blocks, params=params)
    elif _fits_winograd(params):
        run = partial(winograd.kernel_gradient, padding=params.padding)
    else:
        run = partial(_kernel_gradient_by_taps, params=params)
    return _sum_chunks(run, x, g, _num_chunks(x) if chunked else 1)


def _kernel_gradient_by_taps(x: Array, g: Array, params: ConvParams) -> Array:
    """Multiplies, for each kernel position, the pixels under it with the output gradient."""
    x = jnp.pad(x, ((0, 0), *params.padding, (0, 0)))
    height, width = params.kernel_size
    kernel_rows = [
        jnp.stack([channel_outer_product(pixels_under(x, (i, j), params), g) for j in range(width)])
        for i in range(height)
    ]
    return jnp.stack(kernel_rows)


def _kernel_gradient_by_row_blocks(x: Array, g: Array, params: ConvParams) -> Array:
    """Computes one wide product per kernel row, over blocks of ROW_BLOCK pixels, for few channels.

    The product of a block of `g` with all pixels that the block covers in a row of `x` contains
    each kernel position ROW_BLOCK times, along a diagonal.
    """
    (height, width), (rows, columns) = params.kernel_size, params.output_size
    blocks = -(-columns // ROW_BLOCK)
    extra = blocks * ROW_BLOCK - columns
    g = jnp.pad(g, ((0, 0), (0, 0), (0, extra), (0, 0)))
    left, right = params.padding[1]
    x = jnp.pad(x, ((0, 0), params.padding[0], (left, right + extra), (0, 0)))
    reach = width - 1 + ROW_BLOCK
    starts = ROW_BLOCK * (blocks - 1) + 1
    covered = jnp.stack([x[:, :, d : d + starts : ROW_BLOCK] for d in range(reach)], 3)
    (n, channels), features = x.shape[::3], g.shape[3]
    g = g.reshape(n * rows * blocks, ROW_BLOCK * features)
    kernel_rows = []
    for i in range(height):
        x_rows = covered[:, i:][:, :rows].reshape(n * rows * blocks, reach * channels)
        products = lax.dot_general(g, x_rows, (((0,), (0,)), ((), ())))
        products = products.reshape(ROW_BLOCK, features, reach, channels)
        kernel_rows.append(sum(products[b, :, b:][:, :width] for b in range(ROW_BLOCK)))
    return jnp.stack(kernel_rows).transpose(0, 2, 3, 1)


def xla_convolve(conv_pass: ConvPass, lhs: Array, rhs: Array, params: ConvParams) -> Array:
    """Computes a pass by `lax.conv_general_dilated`, gradients as convolutions of NHWC images.

    XLA:CPU itself rewrites gradients so, but not in the body of a loop (over members, micro-batches
    or blocks), where it computes other layouts by a slow loop over single numbers.
    """
    reach = [d * (k - 1) for k, d in zip(params.kernel_size, params.dilation, strict=True)]
    is_within_reach = all(
        0 <= pad <= r for pads, r in zip(params.padding, reach, strict=True) for pad in pads
    )
    if conv_pass == "fwd" or params.groups > 1 or params.rank > 4 or not is_within_reach:
        return xla_conv(conv_pass, lhs, rhs, params)
    # How far the last kernel position reaches, from the first padded pixel.
    sizes = zip(params.strides, params.output_size, reach, strict=True)
    ends = [s * (out - 1) + 1 + r for s, out, r in sizes]
    axes = list(zip(params.image_size, params.padding, reach, ends, strict=True))
    layout, precision = ("NHWC", "HWIO", "NHWC"), params.precision
    if conv_pass == "dgrad":
        return lax.conv_general_dilated(
            lhs,
            jnp.flip(rhs, (0, 1)).swapaxes(2, 3),
            (1, 1),
            [(r - low, size + low + r - end) for size, (low, _), r, end in axes],
            lhs_dilation=params.strides,
            rhs_dilation=params.dilation,
            dimension_numbers=layout,
            precision=precision,
        )
    y = lax.conv_general_dilated(
        lhs.transpose(3, 1, 2, 0),
        rhs.transpose(1, 2, 0, 3),
        params.dilation,
        [(low, end - size - low) for size, (low, _), _, end in axes],
        rhs_dilation=params.strides,
        dimension_numbers=layout,
        precision=precision,
    )
    return y.transpose(1, 2, 0, 3)


def _is_pointwise(params: ConvParams) -> bool:
    no_padding = params.padding == ((0, 0), (0, 0))
    return params.kernel_size == (1, 1) and no_padding and params.groups == 1


def _fits_winograd(params: ConvParams) -> bool:
    return (
        params.kernel_size == (3, 3)
        and params.strides == params.dilation == (1, 1)
        and params.groups == 1
        and all(0 <= pad <= 2 for side in params.padding for pad in side)
    )


def _is_winograd_faster(pixels: int, w: Array) -> bool:
    channels, features = w.shape[2:]
    return min(
        channels, features
    ) >= MIN_WINOGRAD_CHANNELS and pixels >= MIN_WINOGRAD_PIXELS_PER_CHANNEL * max(
        channels, features
    )


def _subsample(x: Array, params: ConvParams) -> Array:
    return lax.slice(x, (0, 0, 0, 0), x.shape, (1, *params.strides, 1))


def _subsample_transpose_padding(params: ConvParams) -> list[tuple[int, int, int]]:
    """Returns the (low, high, interior) padding per axis that transposes `_subsample`."""
    axes = zip(params.image_size, params.output_size, params.strides, strict=True)
    return [(0, size - (stride * (out - 1) + 1), stride - 1) for size, out, stride in axes]


def _num_chunks(x: Array) -> int:
    """Returns the smallest divisor of the batch size with chunks of at most CHUNK_BYTES."""
    n = len(x)
    minimum = min(n, -(-x.size * x.dtype.itemsize // CHUNK_BYTES))
    return next((k for k in range(max(minimum, 1), n + 1) if n % k == 0), 1)


def _map_chunks(f: Callable[[Array], Array], x: Array, chunks: int) -> Array:
    if chunks == 1:
        return f(x)
    y = lax.map(f, x.reshape(chunks, -1, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _sum_chunks(f: Callable[[Array, Array], Array], x: Array, g: Array, chunks: int) -> Array:
    if chunks == 1:
        return f(x, g)
    parts = tuple(a.reshape(chunks, -1, *a.shape[1:]) for a in (x, g))
    like = jax.eval_shape(f, *(part[0] for part in parts))
    start = vary_over(varying_axes(x, g), jnp.zeros(like.shape, like.dtype))
    total, _ = lax.scan(lambda total, part: (total + f(*part), None), start, parts)
    return total
