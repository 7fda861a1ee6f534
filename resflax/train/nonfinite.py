"""Detection of non-finite losses, gradients and parameters, and skipping of such updates."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from resflax.train.state import TrainState

# ignore: no check. stop: report. skip: report and discard the update.
ACTIONS = ("ignore", "stop", "skip")


def _by_group(tree: Any) -> dict[str, list[Any]]:
    """Groups the leaves by their module, such as "stage2_block1/conv1"."""
    groups: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        groups.setdefault(name, []).append(leaf)
    return groups


def param_group_names(params: Any, batch_stats: Any) -> list[str]:
    """Returns the names of the modules that have parameters or statistics, from stem to head.

    >>> stats = {"stem_norm": {"mean": 0}}
    >>> param_group_names({"head": {"bias": 0}, "stem_conv": {"kernel": 0}}, stats)
    ['stem_conv', 'stem_norm', 'head']
    """

    def order(name: str) -> Any:
        part = next((i for i, part in enumerate(("stem", "stage")) if name.startswith(part)), 2)
        return part, [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", name)]

    return sorted({*_by_group(params), *_by_group(batch_stats)}, key=order)


def check_finite(
    loss: Float[Array, ""], grads: Any, params: Any, batch_stats: Any
) -> Bool[Array, " checks"]:
    """Checks whether the loss is finite, and the arrays of each group of `param_group_names`.

    Returns:
      One value for the loss, then one per group: its gradients, parameters and statistics.

    >>> params = {"w": {"k": jnp.ones(1)}}
    >>> check_finite(jnp.float32(1), {"w": {"k": jnp.array([jnp.inf])}}, params, {})
    Array([ True, False], dtype=bool)
    """
    trees = [_by_group(tree) for tree in (grads, params, batch_stats)]
    rows = [jnp.isfinite(loss)]
    for name in param_group_names(params, batch_stats):
        leaves = [leaf for tree in trees for leaf in tree.get(name, [])]
        rows.append(jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])))
    return jnp.stack(rows)


def revert_update(finite: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """Returns `new` if `finite`, else `old` bit for bit except its step, which counts batches."""
    selected = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    return dataclasses.replace(selected, step=new.step)


def describe(finite: list[bool], names: list[str]) -> str:
    """Describes the result of `check_finite` in words.

    >>> describe([False, True, False], ["stem_conv", "head"])
    'not finite: the loss, and 1 of 2 parameter groups, first head'
    """
    bad = [name for name, is_finite in zip(names, finite[1:], strict=True) if not is_finite]
    parts = [] if finite[0] else ["the loss"]
    if bad:
        parts.append(f"{len(bad)} of {len(names)} parameter groups, first {bad[0]}")
    return f"not finite: {', and '.join(parts)}"


def max_in_row(config: ConfigDict) -> int:
    """Returns the number of consecutive bad steps that end a run, or a member's training."""
    return 1 if config.on_nonfinite == "stop" else int(config.max_consecutive_nonfinite)


def stop_reason(config: ConfigDict, in_row: int) -> str:
    """Returns why a run stops after `in_row` consecutive bad steps; "" if it continues.

    >>> config = ConfigDict({"on_nonfinite": "skip", "max_consecutive_nonfinite": 3})
    >>> stop_reason(config, 2), stop_reason(config, 3)[:31]
    ('', ' in 3 consecutive steps, the ma')
    """
    if in_row < max_in_row(config):
        return ""
    if config.on_nonfinite == "stop":
        return ": try a lower config.learning_rate, a config.grad_clip, or config.on_nonfinite=skip"
    return (
        f" in {in_row} consecutive steps, the maximum of config.max_consecutive_nonfinite:"
        " try a lower config.learning_rate"
    )
