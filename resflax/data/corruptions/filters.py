"""Linear filters along one axis as matrices, with the borders of SciPy and OpenCV.

A matrix per severity and a traced index serve all severities with one compilation, and a product
of matrices is fast on every device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Maps positions outside an axis of a given length to positions inside, for NumPy and JAX arrays.
Border = Callable[[Any, int], Any]


def nearest(index: Any, length: int) -> Any:
    """Repeats the pixel at the edge: `a a | a b c | c c`.

    >>> nearest(np.arange(-2, 5), 3).tolist()
    [0, 0, 0, 1, 2, 2, 2]
    """
    return index.clip(0, length - 1)


def reflect(index: Any, length: int) -> Any:
    """Reflects at the edge of the last pixel: `b a | a b c | c b`; SciPy's "reflect".

    >>> reflect(np.arange(-2, 5), 3).tolist()
    [1, 0, 0, 1, 2, 2, 1]
    """
    return (2 * length - 1 - abs(2 * (index % (2 * length)) - (2 * length - 1))) // 2


def mirror(index: Any, length: int) -> Any:
    """Reflects at the center of the last pixel: `c b | a b c | b a`; OpenCV's default.

    >>> mirror(np.arange(-2, 5), 3).tolist()
    [2, 1, 0, 1, 2, 1, 0]
    """
    return length - 1 - abs(index % max(2 * length - 2, 1) - (length - 1))


def gaussian_matrix(
    length: int, sigma: float, *, border: Border, truncate: float
) -> Float[np.ndarray, "length length"]:
    """Returns the Gaussian filter along an axis, like `scipy.ndimage.gaussian_filter1d`.

    Args:
      length: pixels along the axis.
      sigma: standard deviation in pixels; 0 for the identity.
      border: what is outside the image.
      truncate: the filter ends at this many standard deviations.
    """
    radius = int(truncate * sigma + 0.5)
    taps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2) if radius else np.ones(1)
    rows = np.repeat(np.arange(length), len(taps))
    columns = border(np.arange(length)[:, None] + taps, length).ravel()
    matrix = np.zeros((length, length))
    np.add.at(matrix, (rows, columns), np.tile(weights / weights.sum(), length))
    return matrix


def box_resize_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Returns Pillow's resize with `Image.BOX` along an axis: the mean of the pixels below a pixel.

    A source pixel counts if its center is within the target pixel; if `target` is the larger one,
    the result is the nearest source pixel.

    >>> box_resize_matrix(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    # In the order of Pillow's arithmetic, because a center can be at the edge of a pixel.
    scale = source / target
    width = max(scale, 1.0)
    pixels, centers = np.arange(source), (np.arange(target)[:, None] + 0.5) * scale
    first, end = (np.trunc(centers + sign * width / 2 + 0.5) for sign in (-1, 1))
    offset = (pixels - centers + 0.5) / width
    inside = (pixels >= first) & (pixels < end) & (offset > -0.5) & (offset <= 0.5)
    weights = inside.astype(np.float64)
    return weights / weights.sum(1, keepdims=True)


def select(
    matrices: Sequence[np.ndarray], severity: Int[Array, ""] | int, *, fill: float = 0.0
) -> Float[Array, "rows columns"]:
    """Returns the matrix of a severity, float32, padded with `fill` to the size of the largest."""
    rows, columns = (max(matrix.shape[axis] for matrix in matrices) for axis in (0, 1))
    padded = [
        np.pad(m, ((0, rows - m.shape[0]), (0, columns - m.shape[1])), constant_values=fill)
        for m in matrices
    ]
    return jnp.asarray(np.stack(padded), jnp.float32)[jnp.asarray(severity, jnp.int32) - 1]


def filter_rows(matrix: Float[Array, "out h"], x: Float[Array, "h w c"]) -> Float[Array, "out w c"]:
    """Applies a filter along the vertical axis."""
    return jnp.einsum("oh,hwc->owc", matrix, x, precision=jax.lax.Precision.HIGHEST)


def filter_columns(
    matrix: Float[Array, "out w"], x: Float[Array, "h w c"]
) -> Float[Array, "h out c"]:
    """Applies a filter along the horizontal axis."""
    return jnp.einsum("ow,hwc->hoc", matrix, x, precision=jax.lax.Precision.HIGHEST)


def gaussian_taps(taps: int, sigma: float) -> Float[np.ndarray, " taps"]:
    """Returns a Gaussian of `taps` pixels with the sum 1, like OpenCV's `getGaussianKernel`.

    >>> gaussian_taps(3, 1e-3).tolist()
    [0.0, 1.0, 0.0]
    """
    distance = np.arange(taps) - (taps - 1) / 2
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    return weights / math.fsum(weights)
