"""Ensembles: the training step under `vmap`, over stacked states."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


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
