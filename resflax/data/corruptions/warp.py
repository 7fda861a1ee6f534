"""Elastic transform: a random affine map, then smooth random displacements of every pixel.

Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3; after Simard et al. 2003.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from resflax.data.corruptions import filters
from resflax.data.corruptions.pixels import at_severity, from_unit, to_unit

MIN_DETERMINANT = 1e-3  # three points nearly on a line


def sample_bilinear(
    x: Float[Array, "h w c"],
    rows: Float[Array, "h w"],
    columns: Float[Array, "h w"],
    border: filters.Border,
) -> Float[Array, "h w c"]:
    """Samples an image at positions, in pixels from the center of the first one.

    `scipy.ndimage.map_coordinates` of order 1.
    """
    height, width, channels = x.shape
    flat = x.reshape(height * width, channels)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def neighbor(dy: int, dx: int) -> Array:
        row = border(top.astype(jnp.int32) + dy, height)
        return flat[row * width + border(left.astype(jnp.int32) + dx, width)]

    above = neighbor(0, 0) * (1 - right) + neighbor(0, 1) * right
    below = neighbor(1, 0) * (1 - right) + neighbor(1, 1) * right
    return above * (1 - down) + below * down


def affine_from_points(
    source: Float[Array, "3 2"], target: Float[Array, "3 2"]
) -> tuple[Float[Array, "2 2"], Float[Array, "2"]]:
    """Returns the matrix and offset of the affine map from `source` to `target` points.

    >>> points = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> matrix, offset = affine_from_points(points, 2 * points + 1)
    >>> matrix.tolist(), offset.tolist()
    ([[2.0, 0.0], [0.0, 2.0]], [1.0, 1.0])
    """
    (a, b), (c, d) = source[1:] - source[0]
    determinant = a * d - b * c
    safe = jnp.where(jnp.abs(determinant) < MIN_DETERMINANT, MIN_DETERMINANT, determinant)
    inverse = jnp.asarray([[d, -b], [-c, a]]) / safe
    edges = target[1:] - target[0]
    matrix = jnp.einsum("ij,jk->ki", inverse, edges, precision=jax.lax.Precision.HIGHEST)
    moved = jnp.einsum("ij,j->i", matrix, source[0], precision=jax.lax.Precision.HIGHEST)
    return matrix, target[0] - moved


def _affine(x: Float[Array, "h w c"], moves: Float[Array, "3 2"]) -> Float[Array, "h w c"]:
    """Moves three corners of a centered square by `moves`, pixels along x and y."""
    height, width, _ = x.shape
    side = min(height, width) // 3
    center_y, center_x = height // 2, width // 2
    corners = jnp.asarray(
        [
            [center_x + side, center_y + side],
            [center_x + side, center_y - side],
            [center_x - side, center_y - side],
        ],
        jnp.float32,
    )
    # From a pixel to where it comes from.
    matrix, offset = affine_from_points(corners + moves, corners)
    rows, columns = _positions(height, width)
    source_x = matrix[0, 0] * columns + matrix[0, 1] * rows + offset[0]
    source_y = matrix[1, 0] * columns + matrix[1, 1] * rows + offset[1]
    return sample_bilinear(x, source_y, source_x, filters.mirror)


def _positions(height: int, width: int) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Returns the row and the column of every pixel."""
    shape = (height, width)
    return (
        jax.lax.broadcasted_iota(jnp.float32, shape, 0),
        jax.lax.broadcasted_iota(jnp.float32, shape, 1),
    )


def elastic_transform(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[tuple[float, float, float]],
) -> Num[Array, "h w c"]:
    """Applies a random affine map, then displaces every pixel by smoothed uniform noise.

    Args:
      key: decides the map and the displacements.
      image: one image.
      severity: 1 to 5.
      levels: scale of the displacements, standard deviation of the Gaussian that smooths them, and
        reach of the affine map's three points; in units of the shorter side.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    scale, _, reach = at_severity(levels, severity) * side
    u = jax.random.uniform(key, (2 * height * width + 6,), jnp.float32, -1, 1)
    x = _affine(to_unit(image), reach * u[:6].reshape(3, 2))
    noise = u[6:].reshape(height, width, 2)
    along_rows, along_columns = (
        [
            filters.gaussian_matrix(length, sigma * side, border=filters.reflect, truncate=3.0)
            for _, sigma, _ in levels
        ]
        for length in (height, width)
    )
    smooth = filters.filter_rows(filters.select(along_rows, severity), noise)
    smooth = filters.filter_columns(filters.select(along_columns, severity), smooth)
    rows, columns = _positions(height, width)
    moved = sample_bilinear(
        x, rows + scale * smooth[..., 0], columns + scale * smooth[..., 1], filters.reflect
    )
    return from_unit(moved, image.dtype)
