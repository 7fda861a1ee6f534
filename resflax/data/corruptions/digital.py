"""Pixelation and JPEG compression at five severities.

Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int, Key, Num

from resflax.data.augment.pixels import round_to_dtype
from resflax.data.corruptions import filters
from resflax.data.corruptions.jpeg import CHROMA, LUMA, jpeg, quantization_table
from resflax.data.corruptions.pixels import at_severity


def pixelate(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[float],
) -> Num[Array, "h w c"]:
    """Shrinks the image by `levels` and enlarges it again, both with Pillow's box filter.

    Does not use `key`.
    """
    x = image.astype(jnp.float32)
    sides = [[max(1, int(side * level)) for level in levels] for side in image.shape[:2]]
    shrink, enlarge = (
        [
            filters.select([resize(length, small) for small in smaller], severity)
            for length, smaller in zip(image.shape[:2], sides, strict=True)
        ]
        for resize in (filters.box_resize_matrix, lambda a, b: filters.box_resize_matrix(b, a))
    )
    for rows, columns in (shrink, enlarge):
        # Pillow rounds after each axis, and halves up.
        x = jnp.floor(filters.filter_columns(columns, x) + 0.5)
        x = jnp.floor(filters.filter_rows(rows, x) + 0.5)
    return round_to_dtype(x, image.dtype)


def jpeg_compression(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    severity: Int[Array, ""] | int,
    levels: Sequence[int],
) -> Num[Array, "h w c"]:
    """Applies JPEG compression of the qualities `levels`, 1 to 100; does not use `key`."""
    luma, chroma = (
        at_severity([quantization_table(quality, base) for quality in levels], severity)
        for base in (LUMA, CHROMA)
    )
    return jpeg(image, luma, chroma)
