"""Frozen parameters: selected by patterns, left out of the gradient and the optimizer's state.

`resflax.nn.patterns` says what a pattern matches: `stem*` freezes the stem, `stage[12]*` two
stages, `*/norm?` the norms of all blocks.

A batch norm whose scale and bias are both frozen also keeps its statistics, and normalizes by them
in training, as in PyTorch with `requires_grad_(False)` and `eval()`, and as timm's `freeze` does
with its default `include_bn_running_stats=True`; see `freeze_statistics`. Frozen kernels alone do
not freeze the statistics of the norm that follows.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from resflax.errors import UserError
from resflax.nn import ResNet
from resflax.nn.batch_norm import BatchNorm, BatchNormMode
from resflax.nn.functions import describe
from resflax.nn.patterns import Path, check_patterns, matches_leaf, unstacked_names

Params = dict[str, Any]


def split_params(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Splits parameters into the trainable and the frozen ones; `merge_params` is the inverse.

    Args:
      params: arrays or their shapes.
      patterns: patterns of the frozen ones, see `resflax.nn.patterns`.

    Returns:
      Two trees with disjoint leaves, without the modules that have none.

    Raises:
      UserError: if a pattern matches no parameter, or only some of the stacked blocks of a stage;
        if nothing remains trainable.

    >>> split_params({"stem_conv": {"kernel": 1}, "head": {"kernel": 2, "bias": 3}}, ["*/kernel"])
    ({'head': {'bias': 3}}, {'stem_conv': {'kernel': 1}, 'head': {'kernel': 2}})
    """
    if not patterns:
        return params, {}
    flat: dict[Path, Any] = flatten_dict(params)
    unstacked = itertools.chain(*(unstacked_names(path, leaf) for path, leaf in flat.items()))
    names = [*("/".join(path) for path in flat), *unstacked]
    check_patterns(patterns, names, "freeze pattern")
    frozen = {path for path in flat if matches_leaf(path, flat[path], patterns, "freeze")}
    if len(frozen) == len(flat):
        raise UserError("freeze matches every parameter: leave some to train, such as the head")
    return (
        unflatten_dict({path: leaf for path, leaf in flat.items() if path not in frozen}),
        unflatten_dict({path: leaf for path, leaf in flat.items() if path in frozen}),
    )


def merge_params(trainable: Params, frozen: Params) -> Params:
    """Returns one tree with the leaves of both."""
    if not frozen:
        return trainable
    return unflatten_dict({**flatten_dict(trainable), **flatten_dict(frozen)})


def batch_norms(batch_stats: Params) -> tuple[str, ...]:
    """Returns the paths of the batch norms, such as "stage1_block1/norm1"."""
    return tuple(dict.fromkeys("/".join(path[:-1]) for path in flatten_dict(batch_stats)))


def frozen_batch_norms(variables: Params, patterns: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths of the batch norms whose parameters are all frozen.

    `BatchNormMode(frozen=...)` takes them.

    Args:
      variables: "params" and "batch_stats", or their shapes.
      patterns: see `split_params`.
    """
    trainable, frozen = split_params(variables["params"], patterns)
    modules = [{"/".join(path[:-1]) for path in flatten_dict(tree)} for tree in (trainable, frozen)]
    norms = batch_norms(variables.get("batch_stats", {}))
    return tuple(norm for norm in norms if norm in modules[1] - modules[0])


def freeze_statistics(model: Any, variables: Params, patterns: Sequence[str]) -> Any:
    """Returns a model whose batch norms with frozen parameters keep their statistics.

    Args:
      model: a linen module. If there is such a batch norm, it needs a field `batch_norm` of type
        `BatchNormMode`, as `ResNet` has.
      variables: "params" and "batch_stats", or their shapes.
      patterns: see `split_params`.

    Raises:
      UserError: if it has no such field.
    """
    norms = frozen_batch_norms(variables, patterns)
    if not norms:
        return model
    check_batch_norm_field(model, "frozen batch norms need", norms)
    mode = model.batch_norm
    frozen = tuple(dict.fromkeys((*mode.frozen, *norms)))
    return model.clone(batch_norm=dataclasses.replace(mode, frozen=frozen))


def check_batch_norm_field(model: Any, user: str, norms: Sequence[str]) -> None:
    """Raises `UserError` unless a model has a field `batch_norm` that chooses the statistics.

    Args:
      model: a linen module.
      user: who needs it, with the verb.
      norms: paths of the batch norms that have to follow it.
    """
    if not isinstance(getattr(model, "batch_norm", None), BatchNormMode):
        raise UserError(
            f"the model has no field batch_norm of type BatchNormMode, which {user}: freeze other"
            " parameters, or add it as resflax.nn.ResNet does"
        )
    own = model.spec.own_parts if isinstance(model, ResNet) else {}
    others = [norm for norm in norms if norm not in _norms_with_mode(model)] if own else []
    if others:
        parts = ", ".join(f"{field} {describe(part)}" for field, part in own.items())
        raise UserError(
            f"{others[0]} has batch statistics of a part of your own ({parts}), and {user} a batch"
            " norm that follows ops.batch_norm: use norm='batch', or in your function"
            " resflax.nn.batch_norm.BatchNorm with mode=ops.batch_norm"
        )


def _norms_with_mode(model: ResNet) -> set[str]:
    """Returns the paths of the batch norms that have the model's mode."""
    paths = set()

    def collect(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, BatchNorm) and module.mode == model.batch_norm:
            paths.add("/".join(module.path))
        return method(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, *[64] * model.spec.dimensions, 3), jnp.float32)
    with nn.intercept_methods(collect):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    return paths


def moving_statistics(variables: Params, patterns: Sequence[str], mode: BatchNormMode) -> list[str]:
    """Returns the batch norms that change their statistics in blocks whose kernels are all frozen.

    Args:
      variables: "params" and "batch_stats", or their shapes.
      patterns: see `split_params`.
      mode: that of the model.
    """

    def block(path: Sequence[str]) -> str:
        return path[0].partition("_")[0] if path[0].startswith("stem") else path[0]

    kernels = [
        {block(path) for path in flatten_dict(tree) if path[-1] == "kernel"}
        for tree in split_params(variables["params"], patterns)
    ]
    norms = filter(mode.updates, batch_norms(variables.get("batch_stats", {})))
    return [norm for norm in norms if block(norm.split("/")) in kernels[1] - kernels[0]]


def count_params(params: Params) -> int:
    """Returns the number of elements of all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
