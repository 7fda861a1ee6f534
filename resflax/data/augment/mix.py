"""Mixup and CutMix, which mix pairs of examples and their targets.

Examples 2j and 2j + 1 of a batch are mixed with each other. The order of the batch, a function of
(seed, step), decides which examples these are, and devices that hold contiguous parts of even size
never split a pair. Mixing with the reversed batch, as is common, would give other pairs on two
devices than on one. Random numbers are drawn from the key of the first example and used for both,
so that the targets of a pair keep their sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from resflax.data.augment.box import Box, box_mask, sample_centered_box
from resflax.data.augment.pixels import round_to_dtype
from resflax.errors import UserError

Mix = Callable[[Array, Array, Array], tuple[Array, Array]]
Alpha = float | Float[Array, ""]

STREAM = 1000  # random stream, apart from those of `pipeline.TRANSFORMS`, which use the same keys
MAX_ALPHA = 1e6


def blend_pair(pair: Num[Array, "2 ..."], weight: Float[Array, ""]) -> Num[Array, "2 ..."]:
    """Returns each of two arrays times `weight`, plus the other times `1 - weight`."""
    x = pair.astype(jnp.float32)
    return round_to_dtype(weight * x + (1 - weight) * x[::-1], pair.dtype)


def swap_box(
    pair: Num[Array, "2 h w c"], box: Box
) -> tuple[Num[Array, "2 h w c"], Float[Array, ""]]:
    """Swaps the pixels inside a box between two images; also returns the fraction outside it."""
    mask = box_mask(box, *pair.shape[1:3])
    return jnp.where(mask[None], pair[::-1], pair), 1 - jnp.mean(mask.astype(jnp.float32))


def mixup(
    key: Key[Array, ""], pair: Num[Array, "2 h w c"], weight: Float[Array, ""]
) -> tuple[Num[Array, "2 h w c"], Float[Array, ""]]:
    """Blends two images; also returns the weight of each image in its result.

    Zhang et al. 2017 (arXiv:1710.09412), section 2. The key is not used.
    """
    del key
    return blend_pair(pair, weight), weight


def cutmix(
    key: Key[Array, ""], pair: Num[Array, "2 h w c"], weight: Float[Array, ""]
) -> tuple[Num[Array, "2 h w c"], Float[Array, ""]]:
    """Swaps a random box between two images; also returns the weight of each in its result.

    The box has the aspect ratio of the image and `1 - weight` of its area, around a random pixel.
    Where it is clipped at the edges, the returned weight is larger. Yun et al. 2019
    (arXiv:1905.04899), section 3.1 and algorithm A1.
    """
    side = jnp.sqrt(1 - weight)
    height, width = ((size * side).astype(jnp.int32) for size in pair.shape[1:3])
    return swap_box(pair, sample_centered_box(key, pair.shape[1:3], height, width))


# From (key, pair, weight) to the mixed pair and the weight of each image in its result.
MIXES: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "mixup": mixup,
    "cutmix": cutmix,
}


def check_mix(*, mixup: Any = 0.0, cutmix: Any = 0.0) -> None:
    """Raises `UserError` if an argument of `make_mix` is invalid; arrays are not checked."""
    for name, alpha in {"mixup": mixup, "cutmix": cutmix}.items():
        if isinstance(alpha, jax.Array):
            continue
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not is_number or not 0 <= alpha <= MAX_ALPHA:
            raise UserError(f"{name} is {alpha!r}: expected an alpha from 0 (disabled) to 1e6")


def make_mix(*, mixup: Alpha = 0.0, cutmix: Alpha = 0.0) -> Mix | None:
    """Returns a function that mixes the pairs of a batch, or None if both alphas are 0.

    It maps `(keys, images, targets)` to `(images, targets)` of the same shapes and dtypes: `keys`
    `(n,)`, one per example; `images` `(n, h, w, c)` of any dtype, preferably normalized, since
    uint8 is rounded; `targets` float32 `(n, classes)`, probabilities. The weight of each pair is
    drawn from Beta(alpha, alpha). If both alphas are given, each pair uses one of the two methods,
    with equal probability. An alpha may be a traced float32 scalar; where its value is 0, the
    result is the same as if it were not given.

    Args:
      mixup: alpha of mixup; 0 disables it.
      cutmix: alpha of CutMix; 0 disables it.

    Raises:
      UserError: if an alpha is invalid; from the returned function, if n is odd.

    >>> mix = make_mix(mixup=0.2)
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> _, targets = mix(keys, jnp.zeros((4, 8, 8, 3)), jnp.eye(4))
    >>> [round(float(x), 4) for x in targets.sum(1)], targets[:2, 2:].tolist()
    ([1.0, 1.0, 1.0, 1.0], [[0.0, 0.0], [0.0, 0.0]])
    """
    check_mix(mixup=mixup, cutmix=cutmix)
    alphas = {"mixup": mixup, "cutmix": cutmix}
    active = {k: alpha for k, alpha in alphas.items() if isinstance(alpha, jax.Array) or alpha}
    return _mix_pairs(active) if active else None


def _mixing_weight(key: Key[Array, ""], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Draws from Beta(alpha, alpha); returns 1, which mixes nothing, for an alpha of 0."""
    positive = jnp.where(alpha > 0, alpha, 1)
    weight = jax.random.beta(key, positive, positive, dtype=jnp.float32)
    return jnp.where(alpha > 0, weight, 1)


def _mix_pairs(alphas: dict[str, Alpha]) -> Mix:
    branches = [MIXES[name] for name in alphas]

    def mix_pair(key: Array, images: Array, targets: Array) -> tuple[Array, Array]:
        method_key, weight_key, mix_key = jax.random.split(jax.random.fold_in(key, STREAM), 3)
        method = jax.random.randint(method_key, (), 0, len(branches), jnp.int32)
        values = jnp.stack([jnp.float32(alpha) for alpha in alphas.values()])
        first = jnp.argmax(values > 0).astype(jnp.int32)
        method = jnp.where(jnp.all(values > 0), method, first)
        alpha = values[method]
        weight = _mixing_weight(weight_key, alpha)
        images, weight = jax.lax.switch(method, branches, mix_key, images, weight)
        return images, blend_pair(targets, weight)

    def mix(
        keys: Key[Array, " n"], images: Num[Array, "n h w c"], targets: Float[Array, "n classes"]
    ) -> tuple[Num[Array, "n h w c"], Float[Array, "n classes"]]:
        if len(images) % 2:
            raise UserError(
                f"{len(images)} examples cannot be mixed in pairs: use an even batch on each device"
            )
        pairs = [x.reshape(-1, 2, *x.shape[1:]) for x in (images, targets)]
        mixed_images, mixed_targets = jax.vmap(mix_pair)(keys[::2], *pairs)
        return mixed_images.reshape(images.shape), mixed_targets.reshape(targets.shape)

    return mix
