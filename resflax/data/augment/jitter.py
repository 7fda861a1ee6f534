"""Color jitter: random brightness, contrast, saturation and hue."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from resflax.data.augment import color


class Jitter(NamedTuple):
    """One color change.

    Attributes:
      run: `(image, amount) -> image`.
      neutral: the amount that changes nothing.
      minimum: the smallest amount.
    """

    run: Callable[[Array, Array], Array]
    neutral: float
    minimum: float


JITTERS = {
    "brightness": Jitter(color.brightness, 1.0, 0.0),
    "contrast": Jitter(color.contrast, 1.0, 0.0),
    "saturation": Jitter(color.saturation, 1.0, 0.0),
    "hue": Jitter(color.hue, 0.0, -0.5),
}


def apply_jitter(
    image: UInt8[Array, "h w c"],
    order: Int[Array, " changes"],
    amounts: Float[Array, " changes"],
    names: Sequence[str],
) -> UInt8[Array, "h w c"]:
    """Applies some rows of `JITTERS` to one image, in a given order.

    Args:
      image: image of any size; saturation and hue do not change an image that is not RGB.
      order: int32 `(len(names),)`, a permutation of the positions in `names`.
      amounts: float32 `(len(names),)`, the amount of each of `names`.
      names: the rows of `JITTERS`.
    """
    branches = [lambda x, amount, run=JITTERS[name].run: run(x, amount) for name in names]

    def change(x: Array, position: Array) -> tuple[Array, None]:
        return jax.lax.switch(position, branches, x, amounts[position]), None

    return jax.lax.scan(change, image, order)[0]


def color_jitter(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, widths: Sequence[float]
) -> UInt8[Array, "h w c"]:
    """Changes brightness, contrast, saturation and hue of one image at random, in random order.

    Like torchvision's `ColorJitter`: for width w, the factor of each of the first three is uniform
    from max(0, 1 - w) to 1 + w, and the hue shift uniform from -w to w. Introduced by Howard 2013
    (arXiv:1312.5402), section 3.

    Args:
      key: a key for this image.
      image: image of any size.
      widths: widths of brightness, contrast, saturation and hue (at most 0.5); 0 disables one.
    """
    active = {name: width for name, width in zip(JITTERS, widths, strict=True) if width}
    rows = [(JITTERS[name], width) for name, width in active.items()]
    low = jnp.asarray([max(row.minimum, row.neutral - width) for row, width in rows], jnp.float32)
    high = jnp.asarray([row.neutral + width for row, width in rows], jnp.float32)
    u, order = jax.random.uniform(key, (2, len(rows)), jnp.float32)
    return apply_jitter(image, jnp.argsort(order), low + (high - low) * u, tuple(active))
