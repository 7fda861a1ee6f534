"""Mixup and CutMix, which mix pairs of examples and their targets.

Examples 2j and 2j + 1 of a batch are mixed with each other. The order of the batch, a function of
(seed, step), decides which examples these are, and devices that hold contiguous parts of even size
never split a pair. Mixing with the reversed batch, as is common, would give other pairs on two
devices than on one. `MODES` says which examples share their random numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from resflax.data.augment.box import Box, box_mask, sample_centered_box
from resflax.data.augment.pixels import round_to_dtype
from resflax.errors import UserError, unknown

Mix = Callable[[Array, Array, Array], tuple[Array, Array]]
Alpha = float | Float[Array, ""]

STREAM = 1000  # random stream, apart from those of `pipeline.TRANSFORMS`, which use the same keys
MAX_ALPHA = 1e6
APPLY = 3  # stream of the draw of the probability, from the key of the other draws
# Which examples share method, weight and box, as timm's `mixup_mode`: the two of a pair, whose
# targets keep their sum; none; or all of the batch, if the caller gives all examples one key.
MODES = ("pair", "elem", "batch")


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


def check_mix(
    *,
    mixup: Any = 0.0,
    cutmix: Any = 0.0,
    mode: str = "pair",
    probability: float = 1.0,
    switch_probability: float = 0.5,
) -> None:
    """Raises `UserError` if an argument of `make_mix` is invalid; arrays are not checked."""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    shares = {"probability": probability, "switch_probability": switch_probability}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{name} is {share!r}: expected a probability")
    for name, alpha in {"mixup": mixup, "cutmix": cutmix}.items():
        if isinstance(alpha, jax.Array):
            continue
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not is_number or not 0 <= alpha <= MAX_ALPHA:
            raise UserError(f"{name} is {alpha!r}: expected an alpha from 0 (disabled) to 1e6")


def make_mix(
    *,
    mixup: Alpha = 0.0,
    cutmix: Alpha = 0.0,
    mode: str = "pair",
    probability: float = 1.0,
    switch_probability: float = 0.5,
) -> Mix | None:
    """Returns a function that mixes the pairs of a batch, or None if both alphas are 0.

    It maps `(keys, images, targets)` to `(images, targets)` of the same shapes and dtypes: `keys`
    `(n,)`, one per example; `images` `(n, h, w, c)` of any dtype, preferably normalized, since
    uint8 is rounded; `targets` float32 `(n, classes)`, probabilities. The weight of each pair is
    drawn from Beta(alpha, alpha). An alpha may be a traced float32 scalar; where its value is 0,
    the result is the same as if it were not given.

    Args:
      mixup: alpha of mixup; 0 disables it.
      cutmix: alpha of CutMix; 0 disables it.
      mode: a row of `MODES`.
      probability: of mixing at all.
      switch_probability: of CutMix, if both alphas are given.

    Raises:
      UserError: if an argument is invalid; from the returned function, if n is odd.

    >>> mix = make_mix(mixup=0.2)
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> _, targets = mix(keys, jnp.zeros((4, 8, 8, 3)), jnp.eye(4))
    >>> [round(float(x), 4) for x in targets.sum(1)], targets[:2, 2:].tolist()
    ([1.0, 1.0, 1.0, 1.0], [[0.0, 0.0], [0.0, 0.0]])
    """
    shares = {"probability": probability, "switch_probability": switch_probability}
    check_mix(mixup=mixup, cutmix=cutmix, mode=mode, **shares)
    alphas = {"mixup": mixup, "cutmix": cutmix}
    active = {k: alpha for k, alpha in alphas.items() if isinstance(alpha, jax.Array) or alpha}
    return MixPairs(active, mode, probability, switch_probability) if active else None


class MixDraw(NamedTuple):
    """Random numbers of a pair or an example: position in the alphas, weight, key of the box."""

    method: Int[Array, ""]
    weight: Float[Array, ""]
    key: Key[Array, ""]


@dataclass(frozen=True, eq=False)
class MixPairs:
    """The function that `make_mix` returns; see there.

    Attributes:
      alphas: those that are not 0, by the names of `MIXES`.
      mode: a row of `MODES`.
      probability: of mixing.
      switch_probability: of the second of two methods.
    """

    alphas: dict[str, Alpha]
    mode: str
    probability: float
    switch_probability: float

    def draw(self, key: Key[Array, ""]) -> MixDraw:
        """Draws method, weight and the key of the box."""
        key = jax.random.fold_in(key, STREAM)
        method_key, weight_key, mix_key = jax.random.split(key, 3)
        if self.switch_probability == 0.5:
            method = jax.random.randint(method_key, (), 0, len(self.alphas), jnp.int32)
        else:
            is_second = jax.random.bernoulli(method_key, self.switch_probability)
            method = is_second.astype(jnp.int32) * (len(self.alphas) - 1)
        values = jnp.stack([jnp.float32(alpha) for alpha in self.alphas.values()])
        first = jnp.argmax(values > 0).astype(jnp.int32)
        method = jnp.where(jnp.all(values > 0), method, first)
        weight = _mixing_weight(weight_key, values[method])
        if self.probability < 1:
            applies = jax.random.bernoulli(jax.random.fold_in(key, APPLY), self.probability)
            weight = jnp.where(applies, weight, 1)
        return MixDraw(method, weight, mix_key)

    def mix_pair(self, key: Array, images: Array, targets: Array) -> tuple[Array, Array]:
        """Mixes the two rows of `images` and of `targets` with each other."""
        draw, branches = self.draw(key), [MIXES[name] for name in self.alphas]
        images, weight = jax.lax.switch(draw.method, branches, draw.key, images, draw.weight)
        return images, blend_pair(targets, weight)

    def __call__(
        self,
        keys: Key[Array, " n"],
        images: Num[Array, "n h w c"],
        targets: Float[Array, "n classes"],
    ) -> tuple[Num[Array, "n h w c"], Float[Array, "n classes"]]:
        """Mixes the pairs of a batch."""
        if len(images) % 2:
            raise UserError(
                f"{len(images)} examples cannot be mixed in pairs: use an even batch on each device"
            )
        pairs = [x.reshape(-1, 2, *x.shape[1:]) for x in (images, targets)]
        if self.mode == "elem":
            own = [jnp.stack([x, x[:, ::-1]], 2) for x in pairs]  # (pairs, own, of both, ...)
            mixed = jax.vmap(jax.vmap(self.mix_pair))(keys.reshape(-1, 2), *own)
            mixed_images, mixed_targets = (x[:, :, 0] for x in mixed)
        else:
            mixed_images, mixed_targets = jax.vmap(self.mix_pair)(keys[::2], *pairs)
        return mixed_images.reshape(images.shape), mixed_targets.reshape(targets.shape)


def _mixing_weight(key: Key[Array, ""], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Draws from Beta(alpha, alpha); returns 1, which mixes nothing, for an alpha of 0."""
    positive = jnp.where(alpha > 0, alpha, 1)
    weight = jax.random.beta(key, positive, positive, dtype=jnp.float32)
    return jnp.where(alpha > 0, weight, 1)
