"""Patterns that select parameters and modules by their paths.

A shell-style pattern (`fnmatch`) matches paths such as `stage1_block1/conv1/kernel`, or modules
such as `stem_norm` and `stage1_block1/conv1` with everything in them; `*` also matches `/`. A block
is spelled `stage1/block1` as well, so that `stage1` is the whole stage. The paths are those of
`scan=False` for any model: `stage2_block3` also names a part of the stacked `stage2_rest`.
"""

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

from resflax.errors import UserError, suggest
from resflax.nn.scan import REST

Path = tuple[str, ...]


def parse_patterns(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the patterns of a string, which separates them by commas, or of a sequence.

    >>> parse_patterns("stem*, stage[12]*"), parse_patterns(["head"]), parse_patterns(None)
    (('stem*', 'stage[12]*'), ('head',), ())
    """
    parts = value.split(",") if isinstance(value, str) else value or ()
    return tuple(part.strip() for part in parts if part.strip())


def required_patterns(value: Any, source: str) -> tuple[str, ...]:
    """Returns `parse_patterns` of a value that has to have one.

    Args:
      value: a string or a collection of strings.
      source: what the value was given as, for the message.

    Raises:
      UserError: if there is none, or one is not a string.
    """
    parts = [value] if isinstance(value, str) else value
    is_valid = isinstance(parts, Collection) and all(isinstance(part, str) for part in parts)
    if not is_valid or not (patterns := parse_patterns(value)):
        raise UserError(
            f"{source} is {value!r}: expected a name or pattern such as 'stage1', or several"
        )
    return patterns


def matches_path(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a pattern matches a path.

    >>> name = "stage3_block2/conv1/kernel"
    >>> matches_path(name, ["stage[34]/*/conv1/kernel"]), matches_path(name, ["stage3*/conv1"])
    (True, False)
    """
    spellings = {name, re.sub(r"^(stage\d+)_", r"\1/", name)}
    return any(fnmatchcase(path, pattern) for path in spellings for pattern in patterns)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a pattern matches a path or one of the modules around it.

    >>> matches("stem_conv/kernel", ["stem*"]), matches("stage3_block2/norm1/bias", ["stage3"])
    (True, True)
    """
    parts, stage = name.split("/"), re.match(r"stage\d+(?=_)", name)
    modules = ["/".join(parts[: i + 1]) for i in range(len(parts))] + ([stage[0]] if stage else [])
    return any(matches_path(module, patterns) for module in modules)


def matches_all(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Returns whether each of the paths is matched by a pattern.

    >>> matches_all(["head/kernel", "head/bias"], ["h*"]), matches_all(["head/kernel"], ["*/bias"])
    (True, False)
    """
    return all(matches(name, patterns) for name in names)


def unstacked_names(path: Path, leaf: Any) -> list[str]:
    """Returns the name of a parameter, or those of its blocks if they are stacked.

    >>> import numpy as np
    >>> unstacked_names(("stage2_rest", "conv1", "kernel"), np.zeros((2, 3, 3, 8, 8)))
    ['stage2_block2/conv1/kernel', 'stage2_block3/conv1/kernel']
    """
    stage, _, suffix = path[0].partition("_")
    if suffix != REST:
        return ["/".join(path)]
    return ["/".join((f"{stage}_block{i + 2}", *path[1:])) for i in range(leaf.shape[0])]


def matches_leaf(path: Path, leaf: Any, patterns: Sequence[str], source: str) -> bool:
    """Returns whether the patterns match an array, of which stacked blocks are parts.

    Args:
      path: of the array.
      leaf: the array or its shape.
      patterns: the patterns.
      source: where the patterns are from, for the message.

    Raises:
      UserError: if they match some of the stacked blocks only.
    """
    if matches("/".join(path), patterns):
        return True
    names = unstacked_names(path, leaf)
    matched = [matches(name, patterns) for name in names]
    if any(matched) and not all(matched):
        raise UserError(
            f"{source} matches {names[matched.index(True)]}, but not all blocks of {path[0]}, which"
            " are stacked: use --config.scan=False"
        )
    return all(matched)


def check_patterns(
    patterns: Sequence[str], names: Sequence[str], source: str, kind: str = "parameter"
) -> None:
    """Raises `UserError` if a pattern matches no name.

    Args:
      patterns: the patterns.
      names: the paths.
      source: where the patterns are from, for the message.
      kind: of what has the names, for the message.
    """
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            modules = dict.fromkeys(name.rpartition("/")[0] for name in names)
            known = dict.fromkeys([*modules, *(m.partition("/")[0] for m in modules), *names])
            raise UserError(f"{source} {pattern!r} matches no {kind}: {suggest(pattern, known)}")
