"""Ensembles: stacked states, and what differs between their members.

An ensemble of `config.ensemble.size` members is trained as one program. Member k is the run that
`member_config(config, k)` describes: it starts from the same parameters, sees the same batches, and
has the same losses to rounding. `share_init`, `share_order` and `share_augment` give all members
the first one's initial parameters, order of examples, or random augmentation instead.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

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
