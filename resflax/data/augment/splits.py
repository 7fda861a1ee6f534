"""Copies of each example in a step, of which the first has no augmentation of its content."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt8

from resflax.data.augment.pipeline import Augment, make_augment
from resflax.errors import UserError

# Settings of `make_augment` that all copies of an example have with the same random numbers.
SHARED = ("pad_crop", "inception_crop", "flip", "shift")
# Copy k has the random stream `COPY_STREAM + k`, apart from those of `TRANSFORMS`.
COPY_STREAM = 1000


class Splits(NamedTuple):
    """Copies of each example, as timm's `AugMixDataset` makes them (Hendrycks et al. 2020).

    Attributes:
      copies: number of copies, 2 or more.
      shared: augmentation that is the same for all copies: crops and flips; None for none.
      own: augmentation of each copy but the first.
    """

    copies: int
    shared: Augment | None
    own: Augment

    def __call__(
        self,
        keys: Key[Array, " n"],
        images: UInt8[Array, "n h w c"],
        parity: Int[Array, " n"] | None = None,
    ) -> UInt8[Array, "n copies h w c"]:
        """Returns the copies of each image; see `Augment` for the arguments."""
        if self.shared:
            images = self.shared(keys, images, parity)
        copies = [images, *(self.own(row, images) for row in copy_keys(keys, self.copies)[1:])]
        return jnp.stack(copies, axis=1)


def copy_keys(keys: Key[Array, " n"], count: int) -> list[Key[Array, " n"]]:
    """Returns the keys of each copy; the first one has the keys of the examples."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return [keys, *(fold(keys, COPY_STREAM + k) for k in range(1, count))]


def make_splits(count: int, settings: Mapping[str, Any]) -> Splits | None:
    """Makes the copies of each example; None if there is one.

    Args:
      count: number of copies.
      settings: arguments of `make_augment`.

    Raises:
      UserError: if a value is invalid, or if all copies would be equal.

    >>> splits = make_splits(3, {"pad_crop": 4, "auto_augment": "augmix-m3-w3"})
    >>> keys = jax.random.split(jax.random.key(0), 8)
    >>> splits(keys, jnp.zeros((8, 32, 32, 3), jnp.uint8)).shape
    (8, 3, 32, 32, 3)
    """
    if count < 2:
        return None
    own = make_own_augment(settings)
    if own is None:
        raise UserError(
            f"{count} copies of each example would be equal, since all share {', '.join(SHARED)}:"
            " expected another augmentation, such as auto_augment, or one copy"
        )
    shared = make_augment(**{key: value for key, value in settings.items() if key in SHARED})
    return Splits(count, shared, own)


def make_own_augment(settings: Mapping[str, Any]) -> Augment | None:
    """Makes the augmentation that differs between copies; None if there is none.

    Args:
      settings: arguments of `make_augment`.
    """
    return make_augment(**{key: value for key, value in settings.items() if key not in SHARED})
