"""Random resized crop: a crop of random size and aspect ratio, resized to the image size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from resflax.data.augment.box import Box, sample_box
from resflax.data.augment.pixels import round_to_dtype
from resflax.data.crops import INCEPTION_RATIO, INCEPTION_SCALE, Range, largest_size


def _interpolation_matrix(
    start: Int[Array, ""], length: Int[Array, ""], size: int
) -> Float[Array, "size size"]:
    """Returns the weight of each input pixel (column) in each output pixel (row)."""
    start, length = start.astype(jnp.float32), length.astype(jnp.float32)
    offset = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (length / size) - 0.5
    # Clipped, because pixels outside the box must not contribute.
    position = start + jnp.clip(offset, 0.0, length - 1)
    distance = jnp.abs(position[:, None] - jnp.arange(size, dtype=jnp.float32)[None])
    return jnp.maximum(1 - distance, 0.0)


def resized_crop(image: Num[Array, "h w c"], box: Box) -> Num[Array, "h w c"]:
    """Crops one image to a box inside it and resizes the result to `(h, w, c)`, bilinear.

    Equals Pillow's `image.crop(box).resize(size, BILINEAR)` to within its rounding. Two matrix
    products, which need no gather and have the same shape for every box.
    """
    rows = _interpolation_matrix(box.top, box.height, image.shape[0])
    columns = _interpolation_matrix(box.left, box.width, image.shape[1])
    # At default precision a TPU, or a GPU with TF32, would change gray levels by up to one.
    y = jnp.einsum(
        "ip,pqc,jq->ijc",
        rows,
        image.astype(jnp.float32),
        columns,
        precision=jax.lax.Precision.HIGHEST,
    )
    return round_to_dtype(y, image.dtype)


def inception_crop(
    key: Key[Array, ""],
    image: Num[Array, "h w c"],
    *,
    area: Range = INCEPTION_SCALE,
    ratio: Range = INCEPTION_RATIO,
) -> Num[Array, "h w c"]:
    """Crops a random part of one image and resizes it to `(h, w, c)`.

    Szegedy et al. 2014 (arXiv:1409.4842), section 6, sampled like torchvision's
    `RandomResizedCrop`: uniform area, log-uniform ratio, the first of ten attempts that fits, else
    the largest centered box.

    Args:
      key: a key for this image.
      image: the image.
      area: smallest and largest area, as shares of the image's area.
      ratio: smallest and largest ratio of width to height.
    """
    fallback = largest_size(image.shape[0], image.shape[1], ratio)
    _, box = sample_box(key, image.shape, area=area, ratio=ratio, fallback=fallback)
    return resized_crop(image, box)
