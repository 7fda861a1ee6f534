"""Finds the state dict in a training checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from resflax.errors import Report, UserError, first_names
from resflax.weights.arrays import is_array
from resflax.weights.prefixes import is_averaged, is_network

OPTIMIZER_KEYS = {"state", "param_groups"}
KERNEL_RANK = 4  # of a convolution, which every network here has
MAX_NAMES = 8


class StateDict(NamedTuple):
    """A state dict in a checkpoint.

    Attributes:
      path: keys that lead to it; () if the checkpoint is one.
      arrays: its arrays by name.
      others: names of its values that are not arrays.
    """

    path: tuple[str | int, ...]
    arrays: dict[str, Any]
    others: tuple[str, ...] = ()

    @property
    def is_averaged(self) -> bool:
        """Whether a key of the path names averaged weights."""
        return any(map(is_averaged, self.path))

    @property
    def has_kernels(self) -> bool:
        """Whether an array is the kernel of a convolution."""
        return any(array.ndim == KERNEL_RANK for array in self.arrays.values())

    @property
    def has_statistics(self) -> bool:
        """Whether an array is a batch statistic, which averages of parameters alone lack."""
        return any(key.endswith("running_mean") for key in self.arrays)

    def __str__(self) -> str:
        """Returns the path as Python writes it, such as "['model']['state_dict']"."""
        return "".join(f"[{key!r}]" for key in self.path)


def find_state_dict(content: Any, where: str, report: Report) -> dict[str, Any]:
    """Returns the arrays of the one network in a checkpoint, however it is nested.

    States of optimizers are not descended into. Of several state dicts, those with the names of a
    network come first, and of these averaged weights (EMA, SWA), unless only the others have the
    statistics of batch norm.

    Args:
      content: the checkpoint: a state dict, or mappings, lists and tuples that contain one.
      where: name of the checkpoint, for messages.
      report: called with a message if the checkpoint has more than the state dict.

    Raises:
      UserError: if there is no state dict, or there are several and none is averaged.

    >>> net, optimizer = {"conv.weight": np.ones((1, 1, 3, 3))}, {"state": {}, "param_groups": []}
    >>> arrays = find_state_dict({"model": {"net": net}, "opt": optimizer}, "a.pth", print)
    a.pth: using ['model']['net'] of the checkpoint's 'model', 'opt'
    >>> list(arrays)
    ['conv.weight']
    """
    found = list(_walk(content, ()))
    found = [state for state in found if state.has_kernels] or found
    found = [state for state in found if is_network(state.arrays)] or found
    found = [state for i, state in enumerate(found) if not _is_among(state, found[:i])]
    if not found:
        raise UserError(_describe_none(content, where))
    whole = [state for state in found if state.has_statistics] or found
    chosen = [state for state in whole if state.is_averaged] or whole
    if len(chosen) > 1:
        raise UserError(_describe_several(chosen, where))
    [state] = chosen
    if state.path and isinstance(content, Mapping):
        others = f"; it also has {_join(s for s in found if s is not state)}"
        report(
            f"{where}: using {state} of the checkpoint's {_join(map(repr, content))}"
            f"{others if len(found) > 1 else ''}"
        )
    elif state.path:
        report(f"{where}: using {state} of the checkpoint")
    if state.others:
        report(f"{where}: left out {_join(state.others)}: not arrays")
    return state.arrays


def _walk(content: Any, path: tuple[str | int, ...]) -> Iterator[StateDict]:
    """Yields the state dicts in a checkpoint, without those of optimizers."""
    if isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from _walk(value, (*path, i))
    if not isinstance(content, Mapping) or content.keys() >= OPTIMIZER_KEYS:
        return
    state = _as_state_dict(content, path)
    if state:
        yield state
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from _walk(value, (*path, key))


def _as_state_dict(content: Mapping[Any, Any], path: tuple[str | int, ...]) -> StateDict | None:
    """Returns a mapping as a state dict; None if it is another one.

    Besides arrays it may have plain values if the arrays have names of modules.
    """
    if not all(isinstance(key, str) for key in content):
        return None
    arrays = {key: value for key, value in content.items() if is_array(value)}
    others = tuple(key for key in content if key not in arrays)
    state = StateDict(path, arrays, others)
    if not arrays or any(isinstance(content[key], Mapping | list | tuple) for key in others):
        return None
    has_modules = all("." in key or "/" in key for key in arrays) and state.has_kernels
    return state if not others or has_modules else None


def _is_among(state: StateDict, others: list[StateDict]) -> bool:
    """Returns whether another state dict has the same arrays, as where one is saved twice."""
    return any(
        state.arrays.keys() == other.arrays.keys()
        and all(_are_equal(array, other.arrays[key]) for key, array in state.arrays.items())
        for other in others
    )


def _are_equal(array: Any, other: Any) -> bool:
    if array is other:
        return True
    if array.shape != other.shape or array.dtype != other.dtype:
        return False
    return bool(array.equal(other) if hasattr(array, "equal") else np.array_equal(array, other))


def _describe_none(content: Any, where: str) -> str:
    if not isinstance(content, Mapping) or not content:
        kind = "an empty dict" if content == {} else f"a {type(content).__name__}"
        return f"{where} contains {kind}: expected a dict of arrays"
    others = [str(name) for name, value in content.items() if not is_array(value)]
    return (
        f"{where} is not a state dict: expected arrays only, or one state dict among other values,"
        f" but these entries are neither: {_join(others)}"
    )


def _describe_several(found: list[StateDict], where: str) -> str:
    return (
        f"{where} has {len(found)} state dicts, {_join(found)}: expected one: load the"
        f" checkpoint in Python, and save one of them: torch.save(checkpoint{found[0]}, 'one.pth')"
    )


def _join(names: Iterable[object]) -> str:
    return first_names(names, MAX_NAMES)
