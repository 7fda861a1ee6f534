"""Split expressions of TensorFlow Datasets, such as "train[:90%]" or "train+validation[:100]"."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from resflax.errors import UserError, unknown

SYNTAX = "a split, or an expression such as train[:90%], train[1000:] or train+validation"


class Part(NamedTuple):
    """Examples `start` to `stop` - 1 of a split."""

    split: str
    start: int
    stop: int


def parse_expression(dataset: str, expression: str, lengths: Mapping[str, int]) -> tuple[Part, ...]:
    """Returns the parts of a dataset that an expression stands for.

    Args:
      dataset: name of the dataset, for messages.
      expression: see https://www.tensorflow.org/datasets/splits.
      lengths: number of examples of each split.

    Raises:
      UserError: if the expression is invalid, names an unknown split, or stands for no examples.

    >>> parse_expression("x", "train[:90%]+test", {"train": 50, "test": 7})
    (Part(split='train', start=0, stop=45), Part(split='test', start=0, stop=7))
    """
    if expression in lengths:
        return (Part(expression, 0, lengths[expression]),)
    if expression.isidentifier():
        raise unknown("split", expression, sorted(lengths))
    from tensorflow_datasets.core import ReadInstruction  # imports TFDS: 0.3 s

    infos: Any = {name: SimpleNamespace(num_examples=n) for name, n in lengths.items()}
    try:
        absolute = ReadInstruction.from_spec(expression).to_absolute(infos)
    except (ValueError, AttributeError, NotImplementedError) as e:
        reason = str(e).splitlines()[0].removesuffix(" See format at:")
        raise UserError(
            f"the split {expression!r} of dataset {dataset!r} cannot be read: expected {SYNTAX}, of"
            f" {', '.join(sorted(lengths))} ({reason})"
        ) from e
    parts = tuple(
        Part(a.splitname, a.from_ or 0, lengths[a.splitname] if a.to is None else a.to)
        for a in absolute
    )
    if not all(part.start < part.stop for part in parts):
        raise UserError(f"the split {expression!r} of dataset {dataset!r} has no examples")
    return parts


def overlap(dataset: str, first: str, second: str, lengths: Mapping[str, int]) -> bool:
    """Returns whether two expressions have common examples; see `parse_expression`.

    >>> overlap("x", "train[:90%]", "train[90%:]+test", {"train": 50, "test": 7})
    False
    """
    return any(
        a.split == b.split and max(a.start, b.start) < min(a.stop, b.stop)
        for a in parse_expression(dataset, first, lengths)
        for b in parse_expression(dataset, second, lengths)
    )


def part_indices(parts: Sequence[Part], offsets: Mapping[str, int]) -> Int[np.ndarray, " examples"]:
    """Returns the indices of the examples of some parts.

    Args:
      parts: the parts.
      offsets: index of the first example of each split.
    """
    return np.concatenate([np.arange(p.start, p.stop) + offsets[p.split] for p in parts])
