"""Convolutions on the CPU, in pure JAX: each reading of the form by the fastest way XLA has.

Which way is fastest was measured (docs/performance.md). In short: XLA's matrix products are as
fast as anybody's, its convolutions are not, and its gradients of convolutions for the kernel are
slow, so everything that can be a matrix product is one.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from resflax.kernels import winograd
from resflax.kernels.conv_params import ConvForm, Reading, plain
from resflax.kernels.materialize import materialize_on_cpu
from resflax.kernels.winograd import over_pixels

Array = jax.Array

# What a chunk of a batch may take, so that what is made from it stays in the cache.
CHUNK_BYTES = 4_000_000
# Below this a product over pixels is so narrow that XLA's own convolution is no worse (stems).
FEW_CHANNELS = 8
# Below this a product over channels is too narrow; it gets BLOCK pixels of a row at once.
NARROW = 32
BLOCK = 4


def _chunks(x: Array) -> int:
    """Into how many equal parts to take a batch of images."""
    n = len(x)
    wanted = min(n, -(-x.size * x.dtype.itemsize // CHUNK_BYTES))
    return next((k for k in range(max(wanted, 1), n + 1) if n % k == 0), 1)


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
    total, _ = lax.scan(
        lambda total, part: (total + f(*part), None), jnp.zeros(like.shape, like.dtype), parts
    )
    return total


def _subsample(x: Array, form: ConvForm) -> Array:
    return lax.slice(x, (0, 0, 0, 0), x.shape, (1, *form.strides, 1))


def _is_pointwise(form: ConvForm) -> bool:
    return form.window == (1, 1) and form.padding == ((0, 0), (0, 0)) and form.groups == 1


def _is_winograd(form: ConvForm) -> bool:
    return (
        form.window == (3, 3)
        and form.strides == form.dilation == (1, 1)
        and form.groups == 1
        and all(0 <= pad <= 2 for side in form.padding for pad in side)
    )


def _winograd_pays(pixels: int, w: Array) -> bool:
    """The 16 products must be large enough, and the kernel's transform worth its while."""
    channels, features = w.shape[2:]
    return min(channels, features) >= 32 and pixels >= 8 * max(channels, features)


def _flipped(w: Array) -> Array:
    return jnp.flip(w, (0, 1)).swapaxes(2, 3)


def _forward(x: Array, w: Array, form: ConvForm, chunked: bool) -> Array:
    if _is_pointwise(form):
        return lax.dot_general(_subsample(x, form), w[0, 0], (((3,), (0,)), ((), ())))
    pixels = len(x) * form.output[0] * form.output[1]
    if _is_winograd(form) and _winograd_pays(pixels, w):
        run = partial(winograd.convolve, w=w, padding=form.padding)
        return _map_chunks(run, x, _chunks(x) if chunked else 1)
    return plain("y", x, w, form)


def _image_gradient(g: Array, w: Array, form: ConvForm, chunked: bool) -> Array:
    if _is_pointwise(form):
        dx = lax.dot_general(g, w[0, 0], (((3,), (1,)), ((), ())))
        return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *_between(form), (0, 0, 0)))
    if form.strides == (1, 1) and form.groups == 1:  # a convolution of g with the flipped kernel
        reach = [d * (k - 1) for k, d in zip(form.window, form.dilation, strict=True)]
        padding = [(r - low, r - high) for r, (low, high) in zip(reach, form.padding, strict=True)]
        back = form._replace(image=form.output, padding=(padding[0], padding[1]))
        return _forward(g, _flipped(w), back, chunked)
    return plain("x", g, w, form)


def _between(form: ConvForm) -> list[tuple[int, int, int]]:
    """The zeros that stand where a strided 1x1 convolution did not look: (low, high, between)."""
    axes = zip(form.image, form.output, form.strides, strict=True)
    return [(0, size - (stride * (out - 1) + 1), stride - 1) for size, out, stride in axes]


def _kernel_gradient(x: Array, g: Array, form: ConvForm, chunked: bool) -> Array:
    if _is_pointwise(form):
        return over_pixels(_subsample(x, form), g)[None, None]
    if form.crops or form.groups > 1 or x.shape[3] < FEW_CHANNELS:
        return plain("w", x, g, form)
    if form.strides == form.dilation == (1, 1) and min(x.shape[3], g.shape[3]) < NARROW:
        run = partial(_by_blocks, form=form)
    elif _is_winograd(form):
        run = partial(winograd.kernel_gradient, padding=form.padding)
    else:
        run = partial(_by_taps, form=form)
    return _sum_chunks(run, x, g, _chunks(x) if chunked else 1)


def _by_blocks(x: Array, g: Array, form: ConvForm) -> Array:
    """For few channels: one wide product for each row of the kernel, of blocks of pixels in a row.

    A block of `g` against all that it saw of a row of `x` holds each tap once for each of its
    pixels, on a diagonal.
    """
    (height, width), (rows, columns) = form.window, form.output
    blocks = -(-columns // BLOCK)
    g = jnp.pad(g, ((0, 0), (0, 0), (0, blocks * BLOCK - columns), (0, 0)))
    (left, right), reach = form.padding[1], width - 1 + BLOCK
    right += blocks * BLOCK - columns
    x = jnp.pad(x, ((0, 0), form.padding[0], (left, right), (0, 0)))
    seen = jnp.stack([x[:, :, d : d + BLOCK * (blocks - 1) + 1 : BLOCK] for d in range(reach)], 3)
    (n, channels), features = x.shape[::3], g.shape[3]
    g = g.reshape(n * rows * blocks, BLOCK * features)
    taps = []
    for i in range(height):
        row = seen[:, i:][:, :rows].reshape(n * rows * blocks, reach * channels)
        m = lax.dot_general(g, row, (((0,), (0,)), ((), ())))
        m = m.reshape(BLOCK, features, reach, channels)
        taps.append(sum(m[b, :, b:][:, :width] for b in range(BLOCK)))
    return jnp.stack(taps).transpose(0, 2, 3, 1)


def _by_taps(x: Array, g: Array, form: ConvForm) -> Array:
    """One product for each position of the kernel, of the pixels that it saw and the gradient."""
    x = jnp.pad(x, ((0, 0), *form.padding, (0, 0)))
    (down, across), (rows, columns) = form.strides, form.output

    def seen(i: int, j: int) -> Array:
        top, left = i * form.dilation[0], j * form.dilation[1]
        stop = (len(x), top + down * (rows - 1) + 1, left + across * (columns - 1) + 1, x.shape[3])
        return lax.slice(x, (0, top, left, 0), stop, (1, down, across, 1))

    height, width = form.window
    rows_of_taps = [
        jnp.stack([over_pixels(seen(i, j), g) for j in range(width)]) for i in range(height)
    ]
    return jnp.stack(rows_of_taps)


def convolve(reading: Reading, lhs: Array, rhs: Array, form: ConvForm, *, chunked: bool) -> Array:
    """A reading of the form, float32 or bfloat16 (which is computed in float32).

    Axes before the last four are ensemble members, taken one after the other. `chunked` allows
    loops over parts of the batch, which XLA could not split over a mesh.
    """
    if lhs.ndim > 4:
        return lax.map(
            lambda pair: convolve(reading, pair[0], pair[1], form, chunked=chunked), (lhs, rhs)
        )
    dtype = lhs.dtype
    lhs, rhs = lhs.astype(jnp.float32), rhs.astype(jnp.float32)
    if not _is_pointwise(form):  # a matrix product materialises its operands anyway
        lhs, rhs = materialize_on_cpu(lhs), materialize_on_cpu(rhs) if reading == "w" else rhs
    run = {"y": _forward, "x": _image_gradient, "w": _kernel_gradient}[reading]
    return run(lhs, rhs, form, chunked).astype(dtype)
