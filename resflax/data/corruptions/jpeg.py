"""JPEG compression without the entropy coding, which is lossless.

ITU-T T.81 (the standard) and the defaults of libjpeg: the quantization tables of its annex K,
scaled by the quality, and chroma at half the resolution (4:2:0). Agrees with Pillow's encoder and
decoder but for rounding: libjpeg computes in fixed point.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from resflax.data.augment.pixels import is_rgb, round_to_dtype

# Tables K.1 and K.2.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# ITU-R BT.601, from values 0 to 255 to values around 0.
TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
CENTER = 128


def quantization_table(quality: int, base: tuple[tuple[int, ...], ...]) -> Int[np.ndarray, "8 8"]:
    """Returns a table of annex K scaled as libjpeg does for a quality from 1 to 100.

    >>> quantization_table(80, LUMA)[0].tolist()
    [6, 4, 4, 6, 10, 16, 20, 24]
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.asarray(base) * scale + 50) // 100, 1, 255)


def dct_matrix() -> Float[np.ndarray, "8 8"]:
    """Returns the orthonormal discrete cosine transform of 8 values (T.81, A.3.3)."""
    frequency, position = np.mgrid[:8, :8]
    matrix = np.cos((2 * position + 1) * frequency * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix


def compress_plane(x: Float[Array, "h w"], table: Float[Array, "8 8"]) -> Float[Array, "h w"]:
    """Quantizes the cosine transform of 8x8 blocks; returns whole values from 0 to 255.

    The plane is extended to whole blocks by its last row and column, as libjpeg does.
    """
    height, width = x.shape
    padded = jnp.pad(x - CENTER, ((0, -height % 8), (0, -width % 8)), mode="edge")
    rows, columns = (side // 8 for side in padded.shape)
    blocks = padded.reshape(rows, 8, columns, 8)
    dct, exact = jnp.asarray(dct_matrix(), jnp.float32), jax.lax.Precision.HIGHEST
    coefficients = jnp.einsum("ui,ricj,vj->rcuv", dct, blocks, dct, precision=exact)
    # libjpeg's transform has three fractional bits, and its quantization rounds halves up.
    scaled = jnp.round(8 * coefficients) / (8 * table)
    quantized = jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + 0.5) * table
    decoded = jnp.einsum("ui,rcuv,vj->ricj", dct, quantized, dct, precision=exact)
    whole = decoded.reshape(padded.shape)[:height, :width]
    return jnp.clip(jnp.round(whole) + CENTER, 0, 255)


def halve(x: Float[Array, "h w"]) -> Float[Array, "half_h half_w"]:
    """Returns the means of 2x2 pixels, rounded, with whole blocks of 8 columns.

    The last row is repeated if their number is odd, and the last column to a multiple of 16. A half
    is rounded down in even columns and up in odd ones. All as in libjpeg.
    """
    height, width = x.shape
    even = jnp.pad(x, ((0, height % 2), (0, -width % 16)), mode="edge")
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    bias = 1 + jnp.arange(total.shape[1]) % 2
    return jnp.floor((total + bias.astype(jnp.float32)) / 4)


def double(x: Float[Array, "half_h half_w"], shape: tuple[int, int]) -> Float[Array, "h w"]:
    """Interpolates to twice the resolution: 3/4 of the nearer and 1/4 of the farther pixel.

    libjpeg's "fancy upsampling"; `shape` is that of the result, up to one pixel less than twice.
    """
    padded = jnp.pad(x, 1, mode="edge")
    up, down = (3 * x_ + y for x_, y in ((padded[1:-1], padded[:-2]), (padded[1:-1], padded[2:])))
    tall = jnp.stack([up, down], 1).reshape(2 * x.shape[0], padded.shape[1])
    center, left, right = tall[:, 1:-1], tall[:, :-2], tall[:, 2:]
    # The two roundings differ, as in libjpeg, so that they do not shift the mean.
    wide = jnp.stack(
        [jnp.floor((3 * center + left + 8) / 16), jnp.floor((3 * center + right + 7) / 16)], -1
    )
    return wide.reshape(2 * x.shape[0], 2 * x.shape[1])[: shape[0], : shape[1]]


def jpeg(
    image: Num[Array, "h w c"], luma: Float[Array, "8 8"], chroma: Float[Array, "8 8"]
) -> Num[Array, "h w c"]:
    """Returns the image after JPEG compression; an image that is not RGB channel by channel.

    Args:
      image: values from 0 to 255; rounded first.
      luma: quantization table of the luma, and of channels that are not RGB.
      chroma: quantization table of the two chroma planes.
    """
    x = jnp.clip(jnp.round(image.astype(jnp.float32)), 0, 255)
    if not is_rgb(image):
        planes = [compress_plane(x[..., i], luma) for i in range(image.shape[-1])]
        return round_to_dtype(jnp.stack(planes, -1), image.dtype)
    exact = jax.lax.Precision.HIGHEST
    to_ycbcr = jnp.asarray(TO_YCBCR, jnp.float32)
    y, blue, red = jnp.einsum("ij,hwj->ihw", to_ycbcr, x, precision=exact)
    planes = [compress_plane(jnp.round(y), luma)]
    for plane in (blue, red):
        half = compress_plane(halve(jnp.round(plane + CENTER)), chroma)
        planes.append(double(half[:, : -(-plane.shape[1] // 2)], plane.shape) - CENTER)
    to_rgb = jnp.asarray(TO_RGB, jnp.float32)
    rgb = jnp.einsum("ij,jhw->hwi", to_rgb, jnp.stack(planes), precision=exact)
    return jnp.clip(jnp.round(rgb), 0, 255).astype(image.dtype)
