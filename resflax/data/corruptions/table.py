"""The corruptions and their parameters, of CIFAR-10-C and of ImageNet-C."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int, Key, Num

from resflax.data.corruptions import blur, digital, noise, photometric, warp, weather
from resflax.errors import unknown

SEVERITIES = (1, 2, 3, 4, 5)
TABLE_SIDES = (32, 224)  # of the images that the parameters were chosen for
MIDDLE = sum(TABLE_SIDES) // 2


class Corruption(NamedTuple):
    """A function of (key, image, severity) with its parameters at each severity.

    Attributes:
      function: called as `function(key, image, severity, levels)`.
      small: parameters of severities 1 to 5 for images of 32 pixels, as in CIFAR-10-C.
      large: the same for images of 224 pixels, as in ImageNet-C.
      needs_color: whether it leaves images that are not RGB unchanged.
    """

    function: Callable[..., Array]
    small: Sequence[Any]
    large: Sequence[Any]
    needs_color: bool = False

    def __call__(
        self, key: Key[Array, ""], image: Num[Array, "h w c"], severity: Int[Array, ""] | int
    ) -> Num[Array, "h w c"]:
        """Returns the corrupted image, of the same shape and dtype.

        A pure function, for `jit` and `vmap`. One compilation serves all severities if `severity`
        is traced.

        Args:
          key: a key for this image, used by the random corruptions.
          image: values from 0 to 255, uint8 or floating point.
          severity: 1 to 5.

        Raises:
          ValueError: if `severity` is a number and not from 1 to 5.
        """
        if isinstance(severity, int) and severity not in SEVERITIES:
            raise ValueError(f"severity is {severity}: expected 1, 2, 3, 4 or 5")
        levels = self.small if table_side(image.shape) == TABLE_SIDES[0] else self.large
        return self.function(key, image, severity, levels)


def table_side(shape: Sequence[int]) -> int:
    """Returns the image side whose parameters an image of shape `(h, w, ...)` gets: the nearest.

    >>> table_side((28, 28, 1)), table_side((96, 96, 3)), table_side((160, 200, 3))
    (32, 32, 224)
    """
    return TABLE_SIDES[0] if min(shape[:2]) <= MIDDLE else TABLE_SIDES[1]


# The lengths of the elastic transform are shares of the image side. ImageNet-C has 224 pixels, but
# its code multiplies by 244.
_IMAGENET_ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), *((s, 0.01, 0.02) for s in (0.05, 0.07, 0.12)))

# Parameters: github.com/hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py (small) and
# make_imagenet_c.py (large). Lengths are pixels, except those of the elastic transform.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        noise.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot_noise": Corruption(noise.shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(
        noise.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    "gaussian_blur": Corruption(blur.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "defocus_blur": Corruption(
        blur.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "motion_blur": Corruption(
        blur.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "fog": Corruption(
        weather.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(
        photometric.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)
    ),
    "contrast": Corruption(
        photometric.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)
    ),
    "saturate": Corruption(
        photometric.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        needs_color=True,
    ),
    "elastic_transform": Corruption(
        warp.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        tuple(tuple(244 / 224 * share for share in row) for row in _IMAGENET_ELASTIC),
    ),
    "pixelate": Corruption(
        digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)
    ),
    "jpeg_compression": Corruption(
        digital.jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)
    ),
}


def corrupt_batch(
    name: str,
    images: Num[Array, "n h w c"],
    indices: Int[Array, " n"],
    severity: Int[Array, ""] | int,
    *,
    seed: int,
) -> Num[Array, "n h w c"]:
    """Applies one corruption to a batch; an image depends on (seed, name, index, severity) only.

    All severities of an image share their random numbers.

    Args:
      name: a key of `CORRUPTIONS`.
      images: see `Corruption`.
      indices: int32 `(n,)`, the number of each example.
      severity: 1 to 5.
      seed: seed of the random numbers.

    Raises:
      UserError: if there is no such corruption.

    >>> import jax.numpy as jnp
    >>> images = jnp.full((2, 32, 32, 3), 128, jnp.uint8)
    >>> corrupt_batch("contrast", images, jnp.arange(2), 1, seed=0).shape
    (2, 32, 32, 3)
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    stream = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(stream, indices)
    return jax.vmap(CORRUPTIONS[name].__call__, in_axes=(0, 0, None))(keys, images, severity)
