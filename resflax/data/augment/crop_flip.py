"""Where an image lies in its frame: the shifted crop and the mirror."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

# The number of a step that never is: what belongs to an example in all steps is drawn by it.
NO_STEP = 2**32 - 1


def crop_at(image: Array, row: Array, column: Array, *, padding: int) -> Array:
    """One `(h, w, c)` image padded with zeros on each side, and cropped back from that place."""
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return jax.lax.dynamic_slice(padded, (row, column, jnp.zeros_like(row)), image.shape)


def pad_crop(key: Array, image: Array, *, padding: int) -> Array:
    """Pads one `(h, w, c)` image with zeros on each side and crops it back at a random place.

    He et al. 2015, section 4.2, with `padding=4`.
    """
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return crop_at(image, row, column, padding=padding)


def mirrored(image: Array, yes: Array) -> Array:
    """One `(h, w, c)` image, left to right the other way round where the scalar `yes` is true."""
    return jnp.where(yes, image[:, ::-1], image)


def flip(key: Array, image: Array) -> Array:
    """Mirrors one `(h, w, c)` image left to right, every other time."""
    return mirrored(image, jax.random.bernoulli(key))


def flip_parity(seed: Array, index: Array, epoch: Array) -> Array:
    """Of each example the `epoch`, counted from 0 or from 1, int32 `(n,)`.

    Which of the two is a coin of (seed, example), the same in all steps. Where the number is odd
    the alternating flip mirrors.

    Args:
      seed: of the run, an integer scalar.
      index: the examples' numbers, int32 `(n,)`.
      epoch: of each example, how often it was seen before; int32 `(n,)`, or a scalar for all.

    >>> first, second = (flip_parity(0, jnp.arange(4), jnp.int32(e)) for e in (0, 1))
    >>> (second - first).tolist()
    [1, 1, 1, 1]
    """
    key = jax.random.fold_in(jax.random.key(seed), NO_STEP)
    own = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
    return jnp.asarray(epoch, jnp.int32) + jax.vmap(jax.random.bernoulli)(own).astype(jnp.int32)


def alternating_flip(image: Array, turn: Array) -> Array:
    """Mirrors one `(h, w, c)` image where its `turn` (a scalar of `flip_parity`) is odd.

    So an example is mirrored in every other epoch, and two epochs in a row show both of its sides,
    which a coin for each of them does only half of the time. Jordan 2024 (arXiv:2404.00498),
    section 3.6.
    """
    return mirrored(image, turn % 2 == 1)


# From (key, image, turn) to an image.
FLIPS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "none": lambda key, image, turn: image,
    "random": lambda key, image, turn: flip(key, image),
    "alternating": lambda key, image, turn: alternating_flip(image, turn),
}
