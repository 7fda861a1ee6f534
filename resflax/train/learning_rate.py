"""Learning rates of a run: scaled by the batch size, and by factors for some parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from resflax.data.phases import Phases
from resflax.nn.patterns import Path, check_patterns, matches, unstacked_names
from resflax.train.ensemble import is_ensemble

# From batch size over base batch size to the factor of the learning rate.
SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}
Factors = Sequence[tuple[str, float]]


def batch_size_factor(config: ConfigDict) -> float:
    """Returns the factor of all learning rates of a config for its batch size.

    "linear" is the rule of Goyal et al. 2017 (arXiv:1706.02677, section 2.1), "sqrt" that of
    Krizhevsky 2014 (arXiv:1404.5997, section 5), which suits Adam and LAMB; as with `--lr-base`,
    `--lr-base-size` and `--lr-base-scale` of timm.

    >>> keys = {"learning_rate_scaling": "sqrt", "batch_size": 1024, "base_batch_size": 256}
    >>> batch_size_factor(ConfigDict(keys))
    2.0
    """
    return SCALINGS[config.learning_rate_scaling](config.batch_size / config.base_batch_size)


def lowest_peak(config: ConfigDict) -> float:
    """Returns the peak learning rate for the config's batch size, the lowest one of the members."""
    rates = is_ensemble(config) and config.ensemble.learning_rate
    return float(min(rates or (config.learning_rate,)) * batch_size_factor(config))


def describe_learning_rate(config: ConfigDict) -> tuple[str, ...]:
    """Returns a line on the learning rate that the batch size gives; none without scaling."""
    if config.learning_rate_scaling == "none" or not config.epochs:
        return ()
    rates = (is_ensemble(config) and config.ensemble.learning_rate) or (config.learning_rate,)
    factor = batch_size_factor(config)
    scaled, given = (", ".join(f"{r * f:.6g}" for r in rates) for f in (factor, 1.0))
    return (
        f"learning rate: {scaled}, from {given} for {config.base_batch_size} examples, by"
        f" {config.learning_rate_scaling} scaling to {config.batch_size}",
    )


def by_examples(schedule: optax.Schedule, phases: Phases, config: ConfigDict) -> optax.Schedule:
    """Makes a schedule of steps of `config.batch_size` one of the steps of a run.

    Where the batch size differs, a step counts as the share of `config.batch_size` that it has, and
    the learning rate has the factor of its batch size.

    Args:
      schedule: from the number of steps of `config.batch_size`, which may be a fraction.
      phases: of the run.
      config: see `default_config`.
    """
    ratios = [phase.batch_size / config.batch_size for phase in phases]
    if set(ratios) == {1.0}:
        return schedule
    scaling = SCALINGS[config.learning_rate_scaling]
    starts = np.array([phase.start for phase in phases], np.int32)
    before = [phase.examples_before(phase.start) / config.batch_size for phase in phases]
    table = np.array([before, ratios, [scaling(ratio) for ratio in ratios]], np.float32)

    def at_step(step: Any) -> Any:
        step = jnp.asarray(step, jnp.int32)
        i = jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1
        before, ratio, factor = jnp.asarray(table)[:, i]
        taken = (step - jnp.asarray(starts)[i]).astype(jnp.float32)
        return factor * schedule(before + taken * ratio)

    return at_step


def pattern_factors(params: Any, factors: Factors) -> Any:
    """Returns the factor of each parameter, broadcastable to the parameter.

    Args:
      params: parameters, or a part of them; stacked blocks have an array along their axis, if their
        factors differ.
      factors: pairs of a pattern, see `resflax.nn.patterns`, and the factor of what it matches.
        Those of several patterns are multiplied.

    >>> params = {"stem_conv": {"kernel": np.ones(3)}, "head": {"bias": np.ones(2)}}
    >>> pattern_factors(params, [("head", 10.0), ("*/bias", 2.0)])
    {'head': {'bias': 20.0}, 'stem_conv': {'kernel': 1.0}}
    """

    def factor(path: Any, leaf: Any) -> Any:
        names = unstacked_names(tuple(entry.key for entry in path), leaf)
        values = [math.prod(f for pattern, f in factors if matches(n, [pattern])) for n in names]
        if len(set(values)) == 1:
            return float(values[0])
        return np.array(values, np.float32).reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(factor, params)


def check_factors(params: Any, factors: Factors, key: str, verb: str) -> None:
    """Raises `UserError` if a pattern of a key matches no parameter, of arrays or shapes.

    Args:
      params: the parameters that the factors apply to.
      factors: pairs of a pattern and a factor.
      key: of the config, for the message.
      verb: what these parameters have in common, for the message, such as "is trained".
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths: list[tuple[Path, Any]] = [(tuple(e.key for e in path), leaf) for path, leaf in leaves]
    names = [name for path, leaf in paths for name in unstacked_names(path, leaf)]
    check_patterns([p for p, _ in factors], names, key, f"parameter that {verb}")


def scale_updates(scales_of: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiplies updates by factors; use it after an optimizer. It has no state.

    With decoupled weight decay the decay is scaled too, as PyTorch's parameter groups do.

    Args:
      scales_of: from parameters to their factors, numbers or arrays.
    """

    def update(updates: Any, params: Any) -> Any:
        del params
        scales = scales_of(updates)
        return jax.tree.map(lambda u, scale: u * jnp.asarray(scale, u.dtype), updates, scales)

    return optax.stateless(update)
