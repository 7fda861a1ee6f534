"""Intermediate outputs of a network, by names that do not depend on `scan`."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import flax.linen as nn
from flax.core.scope import union_filters
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from resflax.errors import UserError, suggest
from resflax.nn.patterns import matches_path, required_patterns
from resflax.nn.scan import REST, unstack_params

COLLECTION = "intermediates"


def apply_and_capture(
    apply: Callable[..., Any], names: str | Sequence[str], depths: Sequence[int], **kwargs: Any
) -> tuple[Any, dict[str, Array]]:
    """Returns the result of `apply(**kwargs)`, and outputs of the modules that names match.

    Args:
      apply: a network's `apply`, with its variables and inputs.
      names: names or patterns, see `ResNet.apply`.
      depths: number of blocks in each stage.
      **kwargs: further arguments of `apply`.

    Raises:
      UserError: if a name matches nothing, or a module that is called more than once, or linen's
        intermediates are asked for as well.
    """
    patterns, known = required_patterns(names, "capture"), dict[str, None]()
    mutable = kwargs.pop("mutable", False)
    # True and linen's DenyList do not name it.
    collections = [mutable] if isinstance(mutable, str) else mutable
    is_named = isinstance(collections, Collection) and COLLECTION in collections
    if is_named or kwargs.pop("capture_intermediates", False):
        given = f"mutable={mutable!r}" if is_named else "capture_intermediates"
        raise UserError(
            f"capture returns intermediate outputs, and {given} asks linen for them: leave one of"
            " them out"
        )

    def is_wanted(module: nn.Module, method: str) -> bool:
        if not module.path or method != "__call__":
            return False
        paths = _unstacked_paths(module.path, depths)
        known.update(dict.fromkeys(paths))
        return any(matches_path(path, patterns) for path in paths)

    outputs, state = apply(
        **kwargs, mutable=union_filters(mutable, COLLECTION), capture_intermediates=is_wanted
    )
    found = {}
    for path, calls in flatten_dict(unstack_params(state.pop(COLLECTION, {}))).items():
        name = "/".join(path).removesuffix("/__call__")
        known[name] = None
        if matches_path(name, patterns):
            if len(calls) > 1:
                raise UserError(
                    f"capture has {name}, which is called {len(calls)} times: capture a module that"
                    " is called once, around it or after it"
                )
            found[name] = calls[0]
    for pattern in patterns:
        if any(matches_path(name, [pattern]) for name in found):
            continue
        if hidden := [name for name in known if matches_path(name, [pattern])]:
            raise UserError(
                f"capture {pattern!r} matches {hidden[0]}, whose output is not kept, as in an"
                " nn.scan of your own: add 'intermediates' to its variable_axes"
            )
        raise UserError(f"capture {pattern!r} matches no module: {suggest(pattern, known)}")
    return (outputs, state) if mutable else outputs, found


def _unstacked_paths(path: tuple[str, ...], depths: Sequence[int]) -> list[str]:
    """Returns the path of a module, or those in each block if the blocks are stacked.

    >>> _unstacked_paths(("stage1_rest", "conv1"), (3, 4))
    ['stage1_block2/conv1', 'stage1_block3/conv1']
    """
    stage, _, suffix = path[0].partition("_")
    if suffix != REST:
        return ["/".join(path)]
    blocks = range(2, depths[int(stage.removeprefix("stage")) - 1] + 1)
    return ["/".join((f"{stage}_block{i}", *path[1:])) for i in blocks]
