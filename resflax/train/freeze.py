"""Frozen parameters: selected by patterns, left out of the gradient and the optimizer's state.

A shell-style pattern (`fnmatch`) matches paths such as `stage1_block1/conv1/kernel`, or modules
such as `stem_norm` and `stage1_block1/conv1` with everything in them; `*` also matches `/`. `stem*`
freezes the stem, `stage[12]*` two stages, `*/norm?` the norms of all blocks. The paths are those of
`scan=False` for any model: `stage2_block3` also names a part of the stacked `stage2_rest`.

A batch norm whose scale and bias are both frozen also keeps its statistics, and normalizes by them
in training, as in PyTorch with `requires_grad_(False)` and `eval()`, and as timm's `freeze` does
with its default `include_bn_running_stats=True`; see `freeze_statistics`. Frozen kernels alone do
not freeze the statistics of the norm that follows.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from resflax.errors import UserError, suggest
from resflax.nn.batch_norm import BatchNormMode
from resflax.nn.scan import REST

Params = dict[str, Any]
Path = tuple[str, ...]


def parse_patterns(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the patterns of a string, which separates them by commas, or of a sequence.

    >>> parse_patterns("stem*, stage[12]*"), parse_patterns(["head"]), parse_patterns(None)
    (('stem*', 'stage[12]*'), ('head',), ())
    """
    parts = value.split(",") if isinstance(value, str) else value or ()
    return tuple(part.strip() for part in parts if part.strip())


def split_params(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Splits parameters into the trainable and the frozen ones; `merge_params` is the inverse.

    Args:
      params: arrays or their shapes.
      patterns: patterns of the frozen ones, see the module's docstring.

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
    names = {path: _unstacked_names(path, leaf) for path, leaf in flat.items()}
    unstacked = itertools.chain(*names.values())
    _check_patterns(patterns, [*("/".join(path) for path in flat), *unstacked])
    frozen = {path for path in flat if _is_frozen(path, names[path], patterns)}
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
    check_batch_norm_field(model, "frozen batch norms need")
    mode = model.batch_norm
    frozen = tuple(dict.fromkeys((*mode.frozen, *norms)))
    return model.clone(batch_norm=dataclasses.replace(mode, frozen=frozen))


def check_batch_norm_field(model: Any, user: str) -> None:
    """Raises `UserError` unless a model has a field `batch_norm` that chooses the statistics.

    Args:
      model: a linen module.
      user: who needs it, with the verb.
    """
    if not isinstance(getattr(model, "batch_norm", None), BatchNormMode):
        raise UserError(
            f"the model has no field batch_norm of type BatchNormMode, which {user}: freeze other"
            " parameters, or add it as resflax.nn.ResNet does"
        )


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


def matches_all(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Returns whether each of the paths is matched by a pattern.

    >>> matches_all(["head/kernel", "head/bias"], ["h*"]), matches_all(["head/kernel"], ["*/bias"])
    (True, False)
    """
    return all(any(_matches(name, pattern) for pattern in patterns) for name in names)


def count_params(params: Params) -> int:
    """Returns the number of elements of all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _unstacked_names(path: Path, leaf: Any) -> list[str]:
    """Returns the name of a parameter, or those of its blocks if they are stacked.

    >>> _unstacked_names(("stage2_rest", "conv1", "kernel"), jax.numpy.zeros((2, 3, 3, 8, 8)))
    ['stage2_block2/conv1/kernel', 'stage2_block3/conv1/kernel']
    """
    stage, _, suffix = path[0].partition("_")
    if suffix != REST:
        return ["/".join(path)]
    return ["/".join((f"{stage}_block{i + 2}", *path[1:])) for i in range(leaf.shape[0])]


def _matches(name: str, pattern: str) -> bool:
    """Returns whether a pattern matches a path or one of the modules around it."""
    parts = name.split("/")
    return any(fnmatchcase("/".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))


def _is_frozen(path: Path, names: list[str], patterns: Sequence[str]) -> bool:
    if any(_matches("/".join(path), pattern) for pattern in patterns):
        return True
    frozen = [any(_matches(name, pattern) for pattern in patterns) for name in names]
    if any(frozen) and not all(frozen):
        raise UserError(
            f"freeze matches {names[frozen.index(True)]}, but not all blocks of {path[0]}, which"
            " are stacked: use --config.scan=False"
        )
    return all(frozen)


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raises `UserError` if a pattern matches no name."""
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            modules = dict.fromkeys(name.rpartition("/")[0] for name in names)
            known = dict.fromkeys([*modules, *(m.partition("/")[0] for m in modules), *names])
            raise UserError(
                f"freeze pattern {pattern!r} matches no parameter: {suggest(pattern, known)}"
            )
