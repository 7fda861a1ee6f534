"""How a residual block combines its shortcut `s` and its branch `y = F(h)`, as a table.

He et al. 2016 (arXiv:1603.05027), section 3, compare the sum `s + y` with five alternatives; other
rows are learned factors of the branch. Each is a function `(h, y, s, keys)` that returns the
combination. It runs in the block's compact scope; its parameters are in the module "gate".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resflax.nn.drop import drop_path, dropout
from resflax.nn.layers import he_normal_fan_out
from resflax.nn.shortcuts import subsample
from resflax.nn.space import per_channel

Keys = Key[Array, " n"] | None


class Factors(NamedTuple):
    """Factors of the sum `shortcut * s + branch * y`: numbers, or vectors over the channels."""

    shortcut: Any = 1.0
    branch: Any = 1.0


class Gate(NamedTuple):
    """Row of `GATES`.

    Attributes:
      combine: `(h, y, s, keys) -> array of the shape of y`. `h` is the input of the branch. `keys`
        has one key per example, or is None in evaluation.
      is_random: whether `combine` draws random numbers from the keys.
      factors: from the arrays of the module "gate" by name to the factors that `combine` multiplies
        by in evaluation. None if they depend on the input.
      alpha: factor of the branch in a normalizer-free network, from which the expected variance of
        each block's input follows; None for other gates.

    >>> GATES["scaled"](h=None, y=jnp.array([2.0]), s=jnp.array([10.0])).tolist()
    [6.0]
    """

    combine: Callable[[Array, Array, Array, Keys], Array]
    is_random: bool = False
    factors: Callable[[Mapping[str, Any]], Factors] | None = None
    alpha: float | None = None

    def __call__(self, h: Array, y: Array, s: Array, keys: Keys = None) -> Array:
        """Returns the combination of branch `y` and shortcut `s`."""
        return self.combine(h, y, s, keys)


def constant(shortcut: float, branch: float, *, alpha: float | None = None) -> Gate:
    """Makes `shortcut * s + branch * y` (He et al. 2016, section 3.1)."""
    return Gate(
        lambda h, y, s, keys: shortcut * s + branch * y,
        factors=lambda arrays: Factors(shortcut, branch),
        alpha=alpha,
    )


def _sigmoid(h: Array, y: Array, bias: float) -> Array:
    """Returns `sigmoid(Wg h + bg)` with the shape of `y`; Wg is a matrix over the channels."""
    dense = nn.Dense(
        y.shape[-1], dtype=y.dtype, bias_init=nn.initializers.constant(bias), name="gate"
    )
    return jax.nn.sigmoid(dense(subsample(h, y.shape)))


def exclusive(bias: float) -> Gate:
    """Makes `(1 - g) s + g y` with `g = sigmoid(Wg h + bg)` (section 3.2; highway networks).

    Srivastava et al. 2015 (arXiv:1505.00387), eq. 3.

    Args:
      bias: initial value of bg.
    """

    def combine(h: Array, y: Array, s: Array, keys: Keys) -> Array:
        g = _sigmoid(h, y, bias)
        return (1 - g) * s + g * y

    return Gate(combine)


def shortcut_only(bias: float) -> Gate:
    """Makes `(1 - g) s + y` with `g = sigmoid(Wg h + bg)` (section 3.3), bg starting at `bias`."""
    return Gate(lambda h, y, s, keys: (1 - _sigmoid(h, y, bias)) * s + y)


def _convolve(h: Array, y: Array, s: Array, keys: Keys) -> Array:
    dense = nn.Dense(
        s.shape[-1], use_bias=False, dtype=y.dtype, kernel_init=he_normal_fan_out, name="gate"
    )
    return dense(s) + y


def shortcut_dropout(rate: float) -> Gate:
    """Makes `dropout(s) + y` (section 3.5), drawn from each example's key."""
    return Gate(
        lambda h, y, s, keys: (s if keys is None else dropout(keys, s, rate)) + y,
        is_random=True,
        factors=lambda arrays: Factors(),
    )


def branch_drop_path(rate: float) -> Gate:
    """Makes `s + y`, with `y` dropped per example with probability `rate` (arXiv:1603.09382).

    In evaluation it is `s + y`; in training `y` is divided by `1 - rate` where it is kept.
    """

    def combine(h: Array, y: Array, s: Array, keys: Keys) -> Array:
        if keys is None:
            return s + y
        scale = drop_path(keys, [rate])[0].astype(y.dtype)
        return s + y * scale.reshape(-1, *[1] * (y.ndim - 1))

    return Gate(combine, is_random=True, factors=lambda arrays: Factors())


class BranchScale(nn.Module):
    """Learned factor of a branch: one number, or one per channel."""

    start: float
    per_channel: bool

    @nn.compact
    def __call__(self, y: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
        """Returns `y * scale`."""
        shape = y.shape[-1:] if self.per_channel else ()
        scale = self.param("scale", nn.initializers.constant(self.start), shape, jnp.float32)
        scale = scale.astype(y.dtype)
        return y * (per_channel(scale, y) if self.per_channel else scale)


def learned_scale(init: float, *, per_channel: bool = False) -> Gate:
    """Makes `s + scale * y`, with one learned number per block or one per channel."""
    return Gate(
        lambda h, y, s, keys: s + BranchScale(init, per_channel, name="gate")(y),
        factors=lambda arrays: Factors(branch=arrays["scale"]),
    )


def input_scales(depths: Sequence[int], alpha: float) -> list[list[float]]:
    """Returns the factor of each block's input in a normalizer-free network, by stage.

    It is one over the expected standard deviation of the input: a block with a projection starts
    at a variance of 1, and each block adds `alpha ** 2` (Brock et al. 2021, arXiv:2101.08692,
    section 3).

    >>> [[round(x, 3) for x in stage] for stage in input_scales((2, 1), 1.0)]
    [[1.0, 0.707], [0.577]]
    """
    scales, variance = [], 1.0
    for depth in depths:
        variances = [variance, *(1 + i * alpha**2 for i in range(1, depth))]
        variance = 1 + depth * alpha**2
        scales.append([v**-0.5 for v in variances])
    return scales


# `s + y`, which a block computes without a gate.
SUM = constant(1.0, 1.0)
# Sums of the branch y and the shortcut s of the block's input h, with `g = sigmoid(Wg h + bg)`.
# Biases and rates of the rows without another source are those of He et al. 2016, table 1.
GATES: dict[str, Gate] = {
    "none": SUM,  # s + y
    "scaled_shortcut": constant(0.5, 1.0),  # s / 2 + y
    "scaled": constant(0.5, 0.5),  # (s + y) / 2
    "exclusive": exclusive(-6.0),  # (1 - g) s + g y, with bg starting at -6
    "exclusive_open": exclusive(0.0),  # the same, with bg starting at 0
    "shortcut_only": shortcut_only(-6.0),  # (1 - g) s + y, with bg starting at -6
    "shortcut_only_open": shortcut_only(0.0),  # the same, with bg starting at 0
    "conv": Gate(_convolve),  # a 1x1 convolution of the shortcut
    "dropout": shortcut_dropout(0.5),  # dropout(s) + y
    "drop_path": branch_drop_path(0.5),  # s + y, with y dropped per example
    # s + scale y, starting at s (Bachlechner et al. 2020, arXiv:2003.04887, eq. 1).
    "rezero": learned_scale(0.0),
    # De and Smith 2020 (arXiv:2002.10444), section 2: the same factor, in networks without norms.
    "skipinit": learned_scale(0.0),
    # The same for each channel (Touvron et al. 2021, arXiv:2103.17239, eq. 4), at a depth of 24.
    "layer_scale": learned_scale(1e-5, per_channel=True),
    # Zhang et al. 2019 (arXiv:1901.09321), section 3, rule 3: the multiplier of a branch.
    "fixup": learned_scale(1.0),
    # s + 0.2 y, y of the input divided by its expected standard deviation (Brock et al. 2021,
    # arXiv:2101.08692, section 3).
    "normalizer_free": constant(1.0, 0.2, alpha=0.2),
}
