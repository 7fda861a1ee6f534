"""The crop of a random size and shape, stretched back to the image's own size."""

import jax
import jax.numpy as jnp

from resflax.data.augment.box import Box, draw_box
from resflax.data.augment.pixels import round_to_dtype

Array = jax.Array

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def _weights(start: Array, length: Array, size: int) -> Array:
    """What each of `size` input pixels (columns) weighs in each of `size` output pixels (rows)."""
    start, length = start.astype(jnp.float32), length.astype(jnp.float32)
    middle = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (length / size) - 0.5
    # Before the first and behind the last pixel of the box there is nothing but these.
    at = start + jnp.clip(middle, 0.0, length - 1)
    distance = jnp.abs(at[:, None] - jnp.arange(size, dtype=jnp.float32))
    return jnp.maximum(1 - distance, 0.0)


def resized_crop(image: Array, box: Box) -> Array:
    """The pixels of a box inside one `(h, w, c)` image, stretched to `(h, w, c)`, bilinear.

    The same as Pillow's `image.crop(box).resize(size, BILINEAR)`, to its rounding; uint8 is
    rounded. As two products with matrices: no gather, and of one shape for every box.
    """
    rows = _weights(box.top, box.height, image.shape[0])
    columns = _weights(box.left, box.width, image.shape[1])
    # Else a TPU, or a GPU with TF32, would round grey levels by as much as one.
    y = jnp.einsum(
        "ip,pqc,jq->ijc",
        rows,
        image.astype(jnp.float32),
        columns,
        precision=jax.lax.Precision.HIGHEST,
    )
    return round_to_dtype(y, image.dtype)


def _middle(height: int, width: int) -> tuple[int, int]:
    """The largest size that is of a ratio within `RATIO`."""
    return (
        min(height, round(width / RATIO[0])),
        min(width, round(height * RATIO[1])),
    )


def inception_crop(key: Array, image: Array) -> Array:
    """8% to 100% of one `(h, w, c)` image, at a ratio of 3/4 to 4/3, stretched to its size.

    Szegedy et al. 2014 (arXiv:1409.4842), section 6, as torchvision's `RandomResizedCrop` draws it:
    the area uniform, the ratio log-uniform, of ten tries the first that fits, else the middle.
    """
    otherwise = _middle(*image.shape[:2])
    _, box = draw_box(key, image.shape, area=AREA, ratio=RATIO, otherwise=otherwise)
    return resized_crop(image, box)
