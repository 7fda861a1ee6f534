"""Numbers that go bad: what in a step is not finite, and a state that such a step leaves alone."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resflax.errors import unknown
from resflax.train.state import TrainState

Array = jax.Array
# What a step does about them: nothing, not even look; tell; tell, and drop the update.
ACTIONS = ("ignore", "stop", "skip")


def check_action(action: str) -> None:
    """Raises `UserError` if a run cannot do that."""
    if action not in ACTIONS[1:]:
        raise unknown("on_nonfinite", action, ACTIONS[1:])


def _by_group(tree: Any) -> dict[str, list[Any]]:
    """The leaves by the part of the network that they belong to: "stage2_block1/conv1"."""
    param_group_names: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        param_group_names.setdefault(name, []).append(leaf)
    return param_group_names


def param_group_names(params: Any, batch_stats: Any) -> list[str]:
    """The parts of a network, by name, from the image to the logits.

    >>> param_group_names({"head": {"bias": 0}, "stem_conv": {"kernel": 0}}, {"stem_norm": {"mean": 0}})
    ['stem_conv', 'stem_norm', 'head']
    """

    def place(name: str) -> Any:
        first = next((i for i, part in enumerate(("stem", "stage")) if name.startswith(part)), 2)
        return first, [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", name)]

    return sorted({*_by_group(params), *_by_group(batch_stats)}, key=place)


def check_finite(loss: Array, grads: Any, params: Any, batch_stats: Any) -> Array:
    """Whether the loss is finite, then each of `param_group_names`: gradient, parameters and statistics.

    Returns:
      bool `(1 + param_group_names,)`.

    >>> check_finite(jnp.float32(1), {"w": {"k": jnp.array([jnp.inf])}}, {"w": {"k": jnp.ones(1)}}, {})
    Array([ True, False], dtype=bool)
    """
    parts = [_by_group(tree) for tree in (grads, params, batch_stats)]
    rows = [jnp.isfinite(loss)]
    for name in param_group_names(params, batch_stats):
        leaves = [leaf for part in parts for leaf in part.get(name, [])]
        rows.append(jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])))
    return jnp.stack(rows)


def revert_update(good: Array, new: TrainState, old: TrainState) -> TrainState:
    """`new` where `good`, else `old`, bit for bit, but for the step: that numbers the batches."""
    kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    return dataclasses.replace(kept, step=new.step)


def describe(good: list[bool], names: list[str]) -> str:
    """What is not finite, in words.

    >>> describe([False, True, False], ["stem_conv", "head"])
    'not finite: the loss, and 1 of 2 parameter groups, first head'
    """
    bad = [name for name, right in zip(names, good[1:], strict=True) if not right]
    parts = [] if good[0] else ["the loss"]
    if bad:
        parts.append(f"{len(bad)} of {len(names)} parameter groups, first {bad[0]}")
    return f"not finite: {', and '.join(parts)}"


def stop_reason(config: ConfigDict, in_row: int) -> str:
    """Why a run ends after so many bad steps in a row, and what to do; "" if it goes on.

    >>> stop_reason(ConfigDict({"on_nonfinite": "skip", "max_consecutive_nonfinite": 3}), 3)
    ', as in 3 steps in a row, which is config.max_consecutive_nonfinite: try a lower config.learning_rate'
    """
    if config.on_nonfinite == "stop":
        return ": try a lower config.learning_rate, a config.grad_clip_norm or config.on_nonfinite=skip"
    if in_row < config.max_consecutive_nonfinite:
        return ""
    return (
        f", as in {in_row} steps in a row, which is config.max_consecutive_nonfinite:"
        " try a lower config.learning_rate"
    )
