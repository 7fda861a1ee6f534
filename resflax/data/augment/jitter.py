"""Colour jitter: brightness, contrast, saturation and hue, each by a random amount."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resflax.data.augment import color as tone

Array = jax.Array


class Jitter(NamedTuple):
    """A change of colour: `run(image, amount)`, the amount that changes nothing, the least."""

    run: Callable[[Array, Array], Array]
    neutral: float
    minimum: float


JITTERS = {
    "brightness": Jitter(tone.brightness, 1.0, 0.0),
    "contrast": Jitter(tone.contrast, 1.0, 0.0),
    "saturation": Jitter(tone.saturation, 1.0, 0.0),
    "hue": Jitter(tone.hue, 0.0, -0.5),
}


def jitter(image: Array, order: Array, amounts: Array, names: Sequence[str]) -> Array:
    """Some rows of `JITTERS` on one uint8 `(h, w, c)` image, in that order.

    Args:
      image: of any size; without colours its saturation and hue are left alone.
      order: int32 `(len(names),)`, a permutation: which of `names` comes when.
      amounts: float32 `(len(names),)`, of each of `names`.
      names: the rows.
    """
    branches = [lambda x, amount, run=JITTERS[name].run: run(x, amount) for name in names]

    def one(x: Array, number: Array) -> tuple[Array, None]:
        return jax.lax.switch(number, branches, x, amounts[number]), None

    return jax.lax.scan(one, image, order)[0]


def color_jitter(key: Array, image: Array, *, widths: Sequence[float]) -> Array:
    """Random brightness, contrast, saturation and hue of one uint8 `(h, w, c)` image.

    As torchvision's `ColorJitter`: of width w, the factor of each of the first three is uniform
    from max(0, 1 - w) to 1 + w, hue turns by a uniform -w to w of the circle, and the order is
    random. Howard 2013 (arXiv:1312.5402), section 3, began it.

    Args:
      key: of this image.
      image: of any size.
      widths: of brightness, contrast, saturation and hue, the last at most 0.5; 0 leaves one out.
    """
    active = {name: width for name, width in zip(JITTERS, widths, strict=True) if width}
    rows = [(JITTERS[name], width) for name, width in active.items()]
    low = jnp.asarray([max(row.minimum, row.neutral - width) for row, width in rows], jnp.float32)
    high = jnp.asarray([row.neutral + width for row, width in rows], jnp.float32)
    u, order = jax.random.uniform(key, (2, len(rows)), jnp.float32)
    return jitter(image, jnp.argsort(order), low + (high - low) * u, tuple(active))
