"""Policies of independently sampled operations: RandAugment and TrivialAugment."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from resflax.data.augment.box import uniform_to_int
from resflax.data.augment.levels import INFINITY, PAPER, TRIVIAL, Level, arguments
from resflax.data.augment.ops import apply_op

# Streams of draws besides those of `sample_op`, from the same key.
APPLY, MAGNITUDE, OPERATIONS = 1, 2, 3


class RandPolicy(NamedTuple):
    """Several operations with random signs and, if wanted, random magnitudes.

    Attributes:
      levels: the operations.
      full: magnitude at which arguments are `Level.end`.
      layers: number of operations of an image.
      magnitudes: the magnitude of an operation is one of them, with equal probability.
      std: standard deviation of Gaussian noise on the only one of `magnitudes`; infinite: the
        magnitude is uniform from 0 to it.
      maximum: limit of the magnitude with noise; the other limit is 0.
      probability: of each operation; otherwise it is left out.
      weights: probability of each row of `levels`, which are then drawn without replacement; ():
        equal ones, with replacement.
    """

    levels: tuple[Level, ...]
    full: float = 10.0
    layers: int = 2
    magnitudes: tuple[float, ...] = (10.0,)
    std: float = 0.0
    maximum: float = 10.0
    probability: float = 1.0
    weights: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The operations by name."""
        return tuple(row.op for row in self.levels)


TRIVIAL_AUGMENT = RandPolicy(TRIVIAL, full=30, layers=1, magnitudes=tuple(range(31)))


def sample_op(key: Key[Array, ""], count: int) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Samples an operation, 0 to `count - 1`, and a sign, -1 or 1, uniformly."""
    u = jax.random.uniform(key, (2,), jnp.float32)
    return uniform_to_int(u[0], count), jnp.where(u[1] < 0.5, -1.0, 1.0).astype(jnp.float32)


def sample_arguments(
    key: Key[Array, ""], policy: RandPolicy, sign: Float[Array, ""], shape: tuple[int, ...]
) -> Float[Array, " rows"]:
    """Samples a magnitude; returns the argument that each operation has at it."""
    stream = jax.random.fold_in(key, MAGNITUDE)
    magnitude = policy.magnitudes[0]
    if not policy.std:
        table = arguments(policy.levels, np.array(policy.magnitudes), policy.full, sign, shape)
        count = len(policy.magnitudes)
        return table[jax.random.randint(stream, (), 0, count, jnp.int32) if count > 1 else 0]
    if policy.std == INFINITY:
        drawn = magnitude * jax.random.uniform(stream, (), jnp.float32)
    else:
        drawn = magnitude + policy.std * jax.random.normal(stream, (), jnp.float32)
    drawn = jnp.clip(drawn, 0, policy.maximum)
    return arguments(policy.levels, drawn, policy.full, sign, shape)


def apply_policy(
    key: Key[Array, ""],
    image: UInt8[Array, "h w c"],
    *,
    policy: RandPolicy,
    count: Int[Array, ""] | None = None,
) -> UInt8[Array, "h w c"]:
    """Applies the sampled operations of a policy to one image, one after the other.

    With `count`, an int32 scalar, only so many of them.
    """
    names, keys = policy.names, jax.random.split(key, policy.layers)
    chosen = None
    if policy.weights:
        p = jnp.asarray(np.array(policy.weights) / sum(policy.weights), jnp.float32)
        stream = jax.random.fold_in(key, OPERATIONS)
        chosen = jax.random.choice(stream, len(names), (policy.layers,), replace=False, p=p)

    def layer(x: Array, inputs: tuple[Array, Array | None, Array]) -> tuple[Array, None]:
        key, op, number = inputs
        sampled, sign = sample_op(key, len(names))
        op = sampled if op is None else op
        changed = apply_op(x, op, sample_arguments(key, policy, sign, x.shape)[op], names)
        if policy.probability < 1:
            applies = jax.random.bernoulli(jax.random.fold_in(key, APPLY), policy.probability)
            changed = jnp.where(applies, changed, x)
        return changed if count is None else jnp.where(number < count, changed, x), None

    numbers = jnp.arange(policy.layers, dtype=jnp.int32)
    return jax.lax.scan(layer, image, (keys, chosen, numbers))[0]


def rand_augment(
    key: Key[Array, ""], image: UInt8[Array, "h w c"], *, layers: int, magnitude: float
) -> UInt8[Array, "h w c"]:
    """Applies `layers` independently sampled operations of RandAugment to one image.

    Cubuk et al. 2019 (arXiv:1909.13719), section 3.

    Args:
      key: a key for this image.
      image: image of any size.
      layers: the paper's N.
      magnitude: the paper's M, from 0 to 30, where 10 is AutoAugment's largest change.
    """
    policy = RandPolicy(PAPER, layers=layers, magnitudes=(magnitude,))
    return apply_policy(key, image, policy=policy)
