"""Pad-and-crop and horizontal flips."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, Num

# Used in place of a step number for draws that are the same in all steps; no step reaches it.
NO_STEP = 2**32 - 1


def crop_at(
    image: Num[Array, "*space c"], *start: Int[Array, ""], padding: int
) -> Num[Array, "*space c"]:
    """Pads one image with zeros and crops its original size at (row, column) of the result."""
    padded = jnp.pad(image, (*[(padding, padding)] * len(start), (0, 0)))
    return jax.lax.dynamic_slice(padded, (*start, jnp.zeros_like(start[0])), image.shape)


def pad_crop(
    key: Key[Array, ""], image: Num[Array, "*space c"], *, padding: int
) -> Num[Array, "*space c"]:
    """Pads one image with zeros on each side and crops its original size at a random position.

    He et al. 2015, section 4.2, with `padding=4`. Arrays can have any number of spatial axes.
    """
    start = jax.random.randint(key, (image.ndim - 1,), 0, 2 * padding + 1)
    return crop_at(image, *start, padding=padding)


def flip_where(image: Num[Array, "h w c"], condition: Bool[Array, ""]) -> Num[Array, "h w c"]:
    """Flips one image left to right if `condition` is true."""
    return jnp.where(condition, image[:, ::-1], image)


def flip(key: Key[Array, ""], image: Num[Array, "h w c"]) -> Num[Array, "h w c"]:
    """Flips one image left to right with probability 1/2."""
    return flip_where(image, jax.random.bernoulli(key))


def flip_parity(
    seed: Int[Array, ""], index: Int[Array, " batch"], epoch: Int[Array, "*#batch"]
) -> Int[Array, " batch"]:
    """Returns the epoch of each example plus a random offset of 0 or 1, int32 `(n,)`.

    The offset depends on (seed, example) only, so it is the same in all epochs. The alternating
    flip flips an example where the sum is odd.

    Args:
      seed: seed of the run, an integer scalar.
      index: example indices, int32 `(n,)`.
      epoch: epoch of each example, counted from 0, int32 `(n,)` or a scalar.

    >>> first, second = (flip_parity(0, jnp.arange(4), jnp.int32(e)) for e in (0, 1))
    >>> (second - first).tolist()
    [1, 1, 1, 1]
    """
    key = jax.random.fold_in(jax.random.key(seed), NO_STEP)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
    return jnp.asarray(epoch, jnp.int32) + jax.vmap(jax.random.bernoulli)(keys).astype(jnp.int32)


def alternating_flip(image: Num[Array, "h w c"], parity: Int[Array, ""]) -> Num[Array, "h w c"]:
    """Flips one image left to right if `parity`, its element of `flip_parity`, is odd.

    Each example is flipped in every other epoch, so two consecutive epochs show both versions;
    independent random flips do so only half of the time. Jordan 2024 (arXiv:2404.00498), section
    3.6.
    """
    return flip_where(image, parity % 2 == 1)


# From (key, image, parity) to an image.
FLIPS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "none": lambda key, image, parity: image,
    "random": lambda key, image, parity: flip(key, image),
    "alternating": lambda key, image, parity: alternating_flip(image, parity),
}
