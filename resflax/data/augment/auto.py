"""Augmentation policies by name: timm's strings for RandAugment, TrivialAugment, AutoAugment."""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from resflax.data.augment.levels import (
    AUTOAUGMENT,
    CHOICES,
    INFINITY,
    TIMM,
    TIMM_INCREASING,
    arguments,
)
from resflax.data.augment.ops import apply_op
from resflax.data.augment.policies import POLICIES, Step
from resflax.data.augment.rand import TRIVIAL_AUGMENT, RandPolicy, apply_policy
from resflax.errors import UserError

Policy = Callable[[Array, Array], Array]

EXAMPLES = "rand-m9-mstd0.5-inc1, trivial, 3a, " + ", ".join(POLICIES)
# Sections of a string `rand-...`: the number that follows, and its limits.
SECTIONS = {
    "m": (0, 30),
    "n": (1, 100),
    "mstd": (0, 1e6),
    "mmax": (1, 30),
    "inc": (0, 1),
    "p": (0, 1),
}
UNIFORM_STD = 100  # timm: a larger `mstd` draws magnitudes uniformly


def auto_augment(name: str) -> Policy:
    """Returns the policy `(key, image) -> image` of a name, for uint8 images of any size.

    Args:
      name: "trivial", "3a", a row of `POLICIES`, or timm's "rand-m9-n2-mstd0.5-inc1".

    Raises:
      UserError: if there is no such policy.
    """
    if name == "trivial":
        return partial(apply_policy, policy=TRIVIAL_AUGMENT)
    if name == "3a":
        return three_augment
    if name in POLICIES:
        return partial(apply_sub_policy, policy=POLICIES[name])
    if name == "rand" or name.startswith("rand-"):
        return partial(apply_policy, policy=parse_rand(name))
    raise _unknown(name)


def _unknown(name: str) -> UserError:
    return UserError(f"auto_augment is {name!r}: expected a policy such as {EXAMPLES}")


def parse_rand(text: str) -> RandPolicy:
    """Returns the policy of timm's string for RandAugment, with timm's defaults.

    The sections, in any order: `m` magnitude (10), `n` layers (2), `mstd` standard deviation of the
    magnitude (0; above 100: uniform up to `m`), `mmax` its limit (10), `inc` 1 for operations that
    change more with the magnitude, `p` probability of an operation (0.5), `t` the operations:
    "weights", "3a" or "3aw".

    Raises:
      UserError: if a section is not known.

    >>> policy = parse_rand("rand-m7-mstd0.5-inc1")
    >>> policy.magnitudes, policy.std, policy.layers, policy.probability, len(policy.levels)
    ((7.0,), 0.5, 2, 0.5, 15)
    """
    values = {"m": 10.0, "n": 2.0, "mstd": 0.0, "mmax": 10.0, "inc": 0.0, "p": 0.5}
    choice = ""
    for section in text.split("-")[1:]:
        match = re.fullmatch(r"([a-z]+)(\d+\.?\d*)", section)
        if section.removeprefix("t") in CHOICES and section.startswith("t"):
            choice = section.removeprefix("t")
        elif match and match[1] in values and _is_valid(match[1], float(match[2])):
            values[match[1]] = float(match[2])
        else:
            raise UserError(
                f"auto_augment is {text!r}, where {section!r} is not valid: expected sections such"
                " as m9, n2, mstd0.5, mmax10, inc1, p0.5 or tweights"
            )
    is_uniform = values["mstd"] > UNIFORM_STD
    magnitude = values["m"] if values["mstd"] else min(values["m"], values["mmax"])
    levels = dict(CHOICES[choice]) if choice else None
    all_levels = TIMM_INCREASING if values["inc"] else TIMM
    return RandPolicy(
        tuple(levels or all_levels),
        layers=int(values["n"]),
        magnitudes=(magnitude,),
        std=INFINITY if is_uniform else values["mstd"],
        maximum=values["mmax"],
        probability=values["p"],
        weights=tuple(levels.values()) if levels and choice != "3a" else (),
    )


def _is_valid(section: str, value: float) -> bool:
    low, high = SECTIONS[section]
    is_integer = section not in ("n", "inc") or value == int(value)
    return low <= value <= high and is_integer


def apply_sub_policy(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, policy: tuple[tuple[Step, ...], ...]
) -> UInt8[Array, "h w c"]:
    """Applies one sub-policy, drawn with equal probability, to one image.

    Its operations are applied in order, each with its probability, and in a random direction.
    AutoAugment (Cubuk et al. 2018, arXiv:1805.09501), section 3.
    """
    names = [row.op for row in AUTOAUGMENT]
    steps = [[(names.index(s.op), s.magnitude) for s in row] for row in policy]
    table = jnp.asarray(np.array(steps, np.int32))
    probability = jnp.asarray([[step.probability for step in row] for row in policy], jnp.float32)
    row_key, *keys = jax.random.split(key, 1 + table.shape[1])
    row = jax.random.randint(row_key, (), 0, len(policy), jnp.int32)

    def step(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        key, (op, magnitude), probability = inputs
        u = jax.random.uniform(key, (2,), jnp.float32)
        sign = jnp.where(u[1] < 0.5, -1.0, 1.0)
        levels = arguments(AUTOAUGMENT, np.arange(10), 9, sign, x.shape)
        changed = apply_op(x, op, levels[magnitude, op], names)
        return jnp.where(u[0] < probability, changed, x), None

    return jax.lax.scan(step, image, (jnp.stack(keys), table[row], probability[row]))[0]


def three_augment(key: Key[Array, ""], image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Makes one image gray, solarizes or blurs it, each with probability 1/3.

    Solarization has a threshold of 128; the standard deviation of the blur is uniform from 0.1 to 2
    pixels. Touvron et al. 2022 (DeiT III, arXiv:2204.07118), section 3.2.
    """
    op_key, std_key = jax.random.split(key)
    op = jax.random.randint(op_key, (), 0, 3, jnp.int32)
    std = jax.random.uniform(std_key, (), jnp.float32, 0.1, 2.0)
    argument = jnp.stack([jnp.float32(128), jnp.float32(0), std])[op]
    return apply_op(image, op, argument, ("solarize", "color", "blur"))
