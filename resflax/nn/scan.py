"""Identical blocks of a stage as one scanned block with stacked parameters.

With `scan=True` a network keeps the parameters of blocks 2 to n of stage i under "stage{i}_rest",
each leaf with a leading axis over blocks. With `scan=False` they are under "stage{i}_block2" and so
on. `stack_params` and `unstack_params` convert between the two.

All collections are stacked in this way: what blocks sow into "intermediates", and what linen's
`capture_intermediates` records, is under "stage{i}_rest" too, and `unstack_params` gives it the
names of `scan=False`.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")

REST = "rest"


def scan_module(module_class: Any, length: int) -> Any:
    """Returns a module class whose method `step` runs `module_class.step` `length` times."""
    return nn.scan(
        module_class,
        variable_axes={True: 0},  # of all collections: linen drops those that are not named
        split_rngs={True: True},
        length=length,
        methods=["step"],
    )


def stack_params(tree: Tree) -> Tree:
    """Converts a tree from the layout of `scan=False` to that of `scan=True`, without rounding.

    Works on any tree that contains the blocks: parameters, variables, gradients, a `TrainState`.

    >>> unrolled = {f"stage1_block{i}": {"w": float(i)} for i in (1, 2, 3)}
    >>> jax.tree.map(lambda x: x.tolist(), stack_params(unrolled)["stage1_rest"])
    {'w': [2.0, 3.0]}
    """
    return _convert(tree, _stack)


def unstack_params(tree: Tree) -> Tree:
    """Converts a tree from the layout of `scan=True` to that of `scan=False`."""
    return _convert(tree, _unstack)


def parse_block_name(name: str) -> tuple[int, int] | None:
    """Returns stage and block number of a block's parameter name, or None for other names.

    >>> parse_block_name("stage2_block13"), parse_block_name("stem_conv")
    ((2, 13), None)
    """
    match = re.fullmatch(r"stage(\d+)_block(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def _convert(tree: Tree, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> Tree:
    def has_blocks(node: Any) -> bool:
        return isinstance(node, dict) and any(re.match(r"stage\d+_", str(key)) for key in node)

    return jax.tree.map(
        lambda node: convert(node) if has_blocks(node) else node, tree, is_leaf=has_blocks
    )


def _stack(unrolled: dict[str, Any]) -> dict[str, Any]:
    stages: dict[str, list[tuple[int, Any]]] = {}
    stacked = {}
    for name, params in unrolled.items():
        position = parse_block_name(name)
        if position and position[1] > 1:
            stages.setdefault(f"stage{position[0]}_{REST}", []).append((position[1], params))
        else:
            stacked[name] = params
    for name, blocks in stages.items():
        ordered = [params for _, params in sorted(blocks, key=lambda pair: pair[0])]
        stacked[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return stacked


def _unstack(stacked: dict[str, Any]) -> dict[str, Any]:
    unrolled = {}
    for name, params in stacked.items():
        stage, _, suffix = name.partition("_")
        if suffix != REST:
            unrolled[name] = params
            continue
        for i in range(jax.tree.leaves(params)[0].shape[0]):
            unrolled[f"{stage}_block{i + 2}"] = jax.tree.map(lambda leaf, i=i: leaf[i], params)
    return unrolled
