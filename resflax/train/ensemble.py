"""Ensembles: stacked states, and what differs between their members.

An ensemble of `config.ensemble.size` members is trained as one program. Member k is the run that
`member_config(config, k)` describes: it starts from the same parameters, sees the same batches, and
has the same losses to rounding. `share_init`, `share_order` and `share_augment` give all members
the first one's initial parameters, order of examples, or random augmentation instead.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resflax.run.config_diff import flatten_config
from resflax.train.config_keys import KEYS
from resflax.train.state import TrainState

Tree = TypeVar("Tree")

# Keys of `config.ensemble` with one value per member, and the key of the config that each replaces.
MEMBER_KEYS = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "label_smoothing": "label_smoothing",
    "mixup": "data.mixup",
    "drop_path": "spec.drop_path",
}
# Key of `config.ensemble` that makes all members use the first one's seed, for each use of it.
SHARED = {"init": "share_init", "order": "share_order", "augment": "share_augment"}


def stack_states(members: Sequence[Tree]) -> Tree:
    """Stacks the leaves of several trees along a new leading axis, one row per member.

    >>> stack_states([{"w": jnp.zeros(3)}, {"w": jnp.ones(3)}])["w"].shape
    (2, 3)
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def unstack_states(tree: Tree) -> list[Tree]:
    """Splits a stacked tree into its members; the inverse of `stack_states`."""
    size = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda leaf, k=k: leaf[k], tree) for k in range(size)]


class MemberSeeds(NamedTuple):
    """Seeds of all members, one each, for the three uses of a seed.

    Attributes:
      init: of the initial parameters.
      order: of the order of examples.
      augment: of augmentation, mixup, CutMix, drop path and dropout: `TrainState.seed`.
    """

    init: tuple[int, ...]
    order: tuple[int, ...]
    augment: tuple[int, ...]


def is_ensemble(config: ConfigDict) -> bool:
    """Returns whether a config trains several networks."""
    return bool(config.ensemble.size > 1)


def member_seeds(config: ConfigDict) -> tuple[int, ...]:
    """Returns the seed of each member: those of the config, or `seed`, `seed + 1`, ...

    >>> config = ConfigDict({"seed": 3, "ensemble": {"size": 2, "seeds": ()}})
    >>> member_seeds(config)
    (3, 4)
    """
    size = config.ensemble.size
    return tuple(config.ensemble.seeds) or tuple(range(config.seed, config.seed + size))


def seeds_by_use(config: ConfigDict) -> MemberSeeds:
    """Returns the seeds of each member for each use: its own, or the first member's if shared."""
    seeds = member_seeds(config)
    first = seeds[:1] * len(seeds)
    return MemberSeeds(
        **{use: first if config.ensemble[key] else seeds for use, key in SHARED.items()}
    )


def member_config(config: ConfigDict, member: int) -> ConfigDict:
    """Returns the config of the run that trains one member alone.

    With a shared seed (`share_init`, ...) no such run exists: the result has the member's own seed.

    Args:
      config: of an ensemble.
      member: index of the member, from 0.
    """
    alone = config.copy_and_resolve_references()
    values = {key: config.ensemble[name] for name, key in MEMBER_KEYS.items()}
    changes: dict[str, Any] = {
        key: float(members[member]) for key, members in values.items() if members
    }
    changes["seed"] = member_seeds(config)[member]
    changes |= {f"ensemble.{name}": () for name in (*MEMBER_KEYS, "seeds")}
    changes |= {f"ensemble.{name}": False for name in SHARED.values()} | {"ensemble.size": 1}
    alone.update_from_flattened_dict(changes)
    return alone


def join_configs(configs: Sequence[ConfigDict]) -> ConfigDict | None:
    """Returns the config of the ensemble whose members are some runs; None if there is none.

    It is the inverse of `member_config`: the runs may differ in seed and in `MEMBER_KEYS`.

    Args:
      configs: of runs of single networks.
    """
    joined = configs[0].copy_and_resolve_references()
    if any(is_ensemble(config) for config in configs):
        return None
    rows = [flatten_config(config) for config in configs]
    changes: dict[str, Any] = {"ensemble.size": len(configs), "seed": KEYS["seed"].default}
    changes["ensemble.seeds"] = tuple(row["seed"] for row in rows)
    for name, key in MEMBER_KEYS.items():
        values = tuple(row[key] for row in rows)
        if len({*values}) > 1:
            changes |= {f"ensemble.{name}": values, key: KEYS[key].default}
    joined.update_from_flattened_dict(changes)
    for k, row in enumerate(rows):
        if flatten_config(member_config(joined, k)) != row:
            return None
    return joined


class Hyperparameters(NamedTuple):
    """Values that can differ by member: numbers, or each a `Choice`.

    Attributes:
      learning_rate: peak of the schedule.
      weight_decay: see `make_optimizer`.
      label_smoothing: see `cross_entropy`.
      mixup: alpha of mixup.
      drop_path: rate of the last block; None for that of the model's spec.
      reductions: how often `schedule=plateau` has reduced the learning rate, a number or traced.
    """

    learning_rate: Any
    weight_decay: Any
    label_smoothing: Any
    mixup: Any
    drop_path: Any
    reductions: Any = 0


def hyperparameters(config: ConfigDict) -> Hyperparameters:
    """Returns the values of a config that are the same for all members."""
    flat = flatten_config(config)
    return Hyperparameters(**{name: flat[key] for name, key in MEMBER_KEYS.items()})


def differing_values(config: ConfigDict) -> dict[str, tuple[float, ...]]:
    """Returns the values of all members for each of `MEMBER_KEYS` in which they differ."""
    lists = {name: tuple(config.ensemble[name]) for name in MEMBER_KEYS}
    return {name: values for name, values in lists.items() if len({*values}) > 1}


def shared_config(config: ConfigDict) -> ConfigDict:
    """Returns the config that a step of all members is built from: the largest value of each list.

    A value that is 0 for all members leaves its computation out.
    """
    shared = config.copy_and_resolve_references()
    lists = {key: config.ensemble[name] for name, key in MEMBER_KEYS.items()}
    largest = {key: float(max(values)) for key, values in lists.items() if values}
    shared.update_from_flattened_dict(largest)
    return shared


def initial_states(config: ConfigDict, create: Callable[[int], TrainState]) -> TrainState:
    """Creates the state of a run before its first step: one network's, or all members' stacked.

    Args:
      config: of the run.
      create: creates the state of one network from its seed.

    Returns:
      The state; for an ensemble, NumPy arrays with a leading member axis.
    """
    if not is_ensemble(config):
        return create(config.seed)
    uses = seeds_by_use(config)
    states = []
    for k, (init, augment) in enumerate(zip(uses.init, uses.augment, strict=True)):
        state, member = jax.device_get(create(init)), _member_entries(config, k)
        states.append(dataclasses.replace(state, seed=np.uint32(augment), member=member))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def _member_entries(config: ConfigDict, member: int) -> dict[str, Any]:
    """Returns `TrainState.member` before the first step."""
    values = {name: np.float32(row[member]) for name, row in differing_values(config).items()}
    return {**values, "in_row": np.int32(0), "diverged_at": np.int32(0)}


def abstract_states(config: ConfigDict, one: TrainState) -> TrainState:
    """Returns the shapes and dtypes of `initial_states`, from those of one network's state."""
    if not is_ensemble(config):
        return one
    size = config.ensemble.size
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype),
        dataclasses.replace(one, member=_member_entries(config, 0)),
    )
