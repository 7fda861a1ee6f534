"""Depth by `scan`: the identical blocks of a stage as one, its parameters stacked.

A network made with `scan=True` keeps the second to last block of stage i under "stage{i}_rest",
each leaf with a leading axis of blocks, where one made without keeps "stage{i}_block2" and so on.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")

REST = "rest"


def scanned(block: Any, length: int) -> Any:
    """The module class `block`, with its method `step` run `length` times, one after the other."""
    return nn.scan(
        block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=length,
        methods=["step"],
    )


def stack_params(tree: Tree) -> Tree:
    """From the layout of `scan=False` to that of `scan=True`, bit for bit.

    Takes any tree that holds the blocks: parameters, variables, gradients, a whole `TrainState`.

    >>> flat = {f"stage1_block{i}": {"w": float(i)} for i in (1, 2, 3)}
    >>> jax.tree.map(lambda x: x.tolist(), stack_params(flat)["stage1_rest"])
    {'w': [2.0, 3.0]}
    """
    return _convert(tree, _stack)


def unstack_params(tree: Tree) -> Tree:
    """The inverse of `stack_params`."""
    return _convert(tree, _unstack)


def split_block(name: str) -> tuple[int, int] | None:
    """Stage and number of the block that keeps its parameters under that name; None if none does.

    >>> split_block("stage2_block13"), split_block("stem_conv")
    ((2, 13), None)
    """
    match = re.fullmatch(r"stage(\d+)_block(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def _convert(tree: Tree, layer: Callable[[dict[str, Any]], dict[str, Any]]) -> Tree:
    def holds_blocks(node: Any) -> bool:
        return isinstance(node, dict) and any(re.match(r"stage\d+_", str(key)) for key in node)

    return jax.tree.map(
        lambda node: layer(node) if holds_blocks(node) else node, tree, is_leaf=holds_blocks
    )


def _stack(blocks: dict[str, Any]) -> dict[str, Any]:
    stages: dict[str, list[tuple[int, Any]]] = {}
    kept = {}
    for name, block in blocks.items():
        place = split_block(name)
        if place and place[1] > 1:
            stages.setdefault(f"stage{place[0]}_{REST}", []).append((place[1], block))
        else:
            kept[name] = block
    for name, rest in stages.items():
        ordered = [block for _, block in sorted(rest, key=lambda pair: pair[0])]
        kept[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return kept


def _unstack(blocks: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, block in blocks.items():
        stage, _, last = name.partition("_")
        if last != REST:
            flat[name] = block
            continue
        for i in range(jax.tree.leaves(block)[0].shape[0]):
            flat[f"{stage}_block{i + 2}"] = jax.tree.map(lambda leaf, i=i: leaf[i], block)
    return flat
