"""Two examples made one: mixup and CutMix, and their targets.

**Who is mixed with whom.** The examples 2j and 2j + 1 of a batch, with each other. Which two these
are the order of the batch decides, a function of (seed, step); and devices that take contiguous
parts of even size never part a pair. To mix with the batch turned round, as is usual, would make
other pairs on two devices than on one. What is random is drawn from the first example's key and
holds for both, so that a pair's targets still add up to what they were.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from resflax.data.augment.box import Box, centred_anywhere, inside
from resflax.data.augment.pixels import round_to_dtype
from resflax.errors import UserError

Array = jax.Array
Mix = Callable[[Array, Array, Array], tuple[Array, Array]]

STREAM = 1000  # of random numbers; far from those of `make.TRANSFORMS`, which take the same keys


def blend_pair(pair: Array, share: Array) -> Array:
    """Each of two images, `(2, h, w, c)`, as `share` of itself and the rest of the other."""
    x = pair.astype(jnp.float32)
    return round_to_dtype(share * x + (1 - share) * x[::-1], pair.dtype)


def paste_pair(pair: Array, box: Box) -> tuple[Array, Array]:
    """Two images with the pixels inside a box exchanged, and the share of each that is its own."""
    mask = inside(box, *pair.shape[1:3])
    return jnp.where(mask, pair[::-1], pair), 1 - jnp.mean(mask.astype(jnp.float32))


def mixup(key: Array, pair: Array, share: Array) -> tuple[Array, Array]:
    """Two images `(2, h, w, c)` blended, and the share of each that is its own, float32.

    Zhang et al. 2017 (arXiv:1710.09412), section 2. The key is not needed.
    """
    del key
    return blend_pair(pair, share), share


def cutmix(key: Array, pair: Array, share: Array) -> tuple[Array, Array]:
    """Two images `(2, h, w, c)` with a box of each in the other, and the share that is its own.

    The box is of the image's ratio and of `1 - share` of its area, around a random pixel; where it
    is cut off at the edges the share is larger. Yun et al. 2019 (arXiv:1905.04899), section 3.1 and
    algorithm A1.
    """
    side = jnp.sqrt(1 - share)
    height, width = ((size * side).astype(jnp.int32) for size in pair.shape[1:3])
    return paste_pair(pair, centred_anywhere(key, pair.shape[1:3], height, width))


# From (key, pair, share) to the pair mixed, and the share of each that is its own in the end.
MIXES: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "mixup": mixup,
    "cutmix": cutmix,
}


def make_mix(*, mixup: float = 0.0, cutmix: float = 0.0) -> Mix | None:
    """Mixes the pairs of a batch, `(keys, images, targets) -> (images, targets)`; None for nothing.

    A pair's share is drawn from Beta(alpha, alpha). If both are given, each pair is mixed by one
    of them, either as likely. `keys` are `(n,)`, one an
    example; `images` `(n, h, w, c)` of any dtype, best normalised, since uint8 is rounded;
    `targets` float32 `(n, classes)`, probabilities. All keep their shape and dtype.

    Args:
      mixup: the alpha of mixup's Beta distribution; 0 for no mixup.
      cutmix: the alpha of CutMix's; 0 for no CutMix.

    Raises:
      UserError: on an alpha that cannot be; and, when the result is called, on an odd n.

    >>> mix = make_mix(mixup=0.2)
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> _, targets = mix(keys, jnp.zeros((4, 8, 8, 3)), jnp.eye(4))
    >>> [round(float(x), 4) for x in targets.sum(1)], targets[:2, 2:].tolist()
    ([1.0, 1.0, 1.0, 1.0], [[0.0, 0.0], [0.0, 0.0]])
    """
    alphas = {"mixup": mixup, "cutmix": cutmix}
    for name, alpha in alphas.items():
        real = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not real or not 0 <= alpha <= 1e6:
            raise UserError(f"{name} is {alpha!r}: expected an alpha from 0 (for never) to 1e6")
    given = {name: float(alpha) for name, alpha in alphas.items() if alpha}
    if not given:
        return None
    branches = [MIXES[name] for name in given]

    def one(key: Array, images: Array, targets: Array) -> tuple[Array, Array]:
        which_key, share_key, mix_key = jax.random.split(jax.random.fold_in(key, STREAM), 3)
        which = jax.random.randint(which_key, (), 0, len(branches))
        alpha = jnp.asarray([*given.values()], jnp.float32)[which]
        share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
        images, share = jax.lax.switch(which, branches, mix_key, images, share)
        return images, blend_pair(targets, share)

    def mix(keys: Array, images: Array, targets: Array) -> tuple[Array, Array]:
        if len(images) % 2:
            raise UserError(
                f"{len(images)} examples cannot be mixed in pairs: use an even batch on each device"
            )
        pairs = [x.reshape(-1, 2, *x.shape[1:]) for x in (images, targets)]
        mixed, shares = jax.vmap(one)(keys[::2], *pairs)
        return mixed.reshape(images.shape), shares.reshape(targets.shape)

    return mix
