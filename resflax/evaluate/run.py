"""Evaluation of a classifier over a split: every example once, on all devices and processes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from resflax.data import StreamingSplit, eval_batches
from resflax.distributed.processes import all_gather_rows, all_gather_strings
from resflax.errors import UserError
from resflax.evaluate.classes import EXCLUDED, LabelMap
from resflax.evaluate.log_probabilities import (
    Classify,
    Rows,
    classify_crops,
    classify_whole_images,
    select_rows,
)
from resflax.evaluate.views import Views

OnBatch = Callable[[int], None]


def _no_sums(rows: Rows) -> tuple[()]:
    del rows
    return ()


class Reduction(NamedTuple):
    """Reduces each batch to per-example arrays. Labels are positions in `LabelMap.columns`.

    Attributes:
      examples: maps rows to a tree of arrays whose first axis is the row. Rows that do not count,
        whose label is 0, are dropped afterwards.
      sums: maps rows, all of which count, to a tree of arrays, which are added over the batches.
    """

    examples: Callable[[Rows], Any]
    sums: Callable[[Rows], Any] = _no_sums


class Evaluated(NamedTuple):
    """The examples of a split that count, in order.

    Attributes:
      indices: their indices in the split.
      examples: what the reduction keeps of each of them.
      sums: its sums over all of them.
      excluded: number of examples whose class does not count.
      skipped: one line for each example that could not be read.
    """

    indices: Int[np.ndarray, " n"]
    examples: Any
    sums: Any
    excluded: int
    skipped: list[str]


class Part(NamedTuple):
    """The values of some rows, some of which do not count.

    Attributes:
      indices: indices of the examples.
      is_read: False for padding and for the replacement of a skipped example.
      is_valid: whether the class of the example counts.
      examples: see `Reduction`.
    """

    indices: Int[np.ndarray, " n"]
    is_read: Bool[np.ndarray, " n"]
    is_valid: Bool[np.ndarray, " n"]
    examples: Any


def evaluate_split(
    classify: Classify,
    split: StreamingSplit,
    views: Views,
    label_map: LabelMap,
    reduction: Reduction,
    *,
    batch_size: int,
    num_workers: int = 0,
    on_batch: OnBatch = lambda examples: None,
) -> Evaluated:
    """Reduces every example of a split; with several processes, each computes its share.

    Args:
      classify: computes the logits of each member, see `Classify`.
      split: read with the transform of `views`.
      views: the views of each image.
      label_map: the classes that count, and the labels.
      reduction: what is kept of each batch.
      batch_size: images per batch of all processes together, a multiple of their number.
      num_workers: worker processes that read images; 0 for threads.
      on_batch: called after each batch with the number of its examples, of all processes.

    Raises:
      UserError: if an example cannot be read and is not skipped, a label or logit is invalid, or no
        example remains.
    """
    processes = jax.process_count()
    size = processes if views.scales else batch_size
    batches = read_batches(split, batch_size=size, num_workers=num_workers)
    parts: list[Part] = []
    sums: Any = None
    remaining = len(split)
    for rows in _classify(classify, batches, split, views, label_map.columns, batch_size):
        part, part_sums = reduce_rows(rows, label_map, split, reduction)
        parts.append(part)
        sums = part_sums if sums is None else jax.tree.map(np.add, sums, part_sums)
        done = min(len(rows.indices) * processes, remaining)
        remaining -= done
        on_batch(done)
    return gather_parts(parts, sums, split)


def read_batches(split: StreamingSplit, *, batch_size: int, num_workers: int) -> Iterator[Any]:
    """Yields this process's rows of each batch, with "index", "image", "label" and "weight"."""
    share = batch_size // jax.process_count()
    first = jax.process_index() * share
    return eval_batches(
        split,
        batch_size=batch_size,
        local_rows=slice(first, first + share),
        num_workers=num_workers,
        with_index=True,
    )


def _classify(
    classify: Classify,
    batches: Iterator[Any],
    split: StreamingSplit,
    views: Views,
    columns: Int[np.ndarray, " classes"],
    batch_size: int,
) -> Iterator[Rows]:
    if not views.scales:
        return classify_crops(classify, batches, views, columns)
    assert split.eval_transform is not None
    return classify_whole_images(
        classify,
        batches,
        views,
        columns,
        interpolation=split.eval_transform.interpolation,
        batch_size=max(1, batch_size // jax.process_count()),
    )


def reduce_rows(
    rows: Rows, label_map: LabelMap, split: StreamingSplit, reduction: Reduction
) -> tuple[Part, Any]:
    """Reduces the rows of a batch.

    Raises:
      UserError: if a label is invalid.
    """
    is_read = rows.weights > 0
    label = np.where(is_read, rows.labels, 0)
    bad = np.flatnonzero(label >= len(label_map.labels))
    if len(bad):
        location = split.source.location(int(rows.indices[bad[0]]))
        raise UserError(
            f"{location} has label {label[bad[0]]}: expected from 0 to {len(label_map.labels) - 1}"
        )
    position = label_map.labels[label]
    is_valid = position != EXCLUDED
    rows = rows._replace(labels=np.where(is_valid, position, 0).astype(np.int64))
    part = Part(rows.indices.astype(np.int64), is_read, is_valid, reduction.examples(rows))
    counts = is_read & is_valid
    if counts.any():
        return part, jax.tree.map(np.asarray, reduction.sums(select_rows(rows, counts)))
    first = np.arange(len(counts)) == 0  # for the shapes
    return part, jax.tree.map(np.zeros_like, reduction.sums(select_rows(rows, first)))


def gather_parts(parts: list[Part], sums: Any, split: StreamingSplit) -> Evaluated:
    """Joins the parts of all processes, in the order of the examples."""
    local = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    part: Part = all_gather_rows(local)
    sums = jax.tree.map(lambda a: a.sum(0), all_gather_rows(jax.tree.map(lambda a: a[None], sums)))
    skipped = all_gather_strings(list(split.skipped.values()))
    counts = np.flatnonzero(part.is_read & part.is_valid)
    if not len(counts):
        raise UserError(f"{split.source.name} has no example that counts: expected one or more")
    order = counts[np.argsort(part.indices[counts])]
    chosen: Part = jax.tree.map(lambda array: array[order], part)
    excluded = int((part.is_read & ~part.is_valid).sum())
    return Evaluated(chosen.indices, chosen.examples, sums, excluded, skipped)
