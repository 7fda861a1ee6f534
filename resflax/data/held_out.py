"""A share of the training split that is held out: for calibration and the selection of members.

It depends on the data, the share and a separate seed, not on the seed of the run, so that runs
with different seeds hold out the same examples and can form one ensemble.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from resflax.data.fingerprint import Fingerprint
from resflax.data.in_memory import InMemorySplit
from resflax.data.source import Source
from resflax.data.streaming import StreamingSplit
from resflax.errors import UserError

Labels = Int[np.ndarray, " examples"]


class HeldOut(NamedTuple):
    """The examples of a training split that are trained on and those that are not, in order."""

    train: Int[np.ndarray, " trained"]
    held_out: Int[np.ndarray, " held_out"]


def split_labels(labels: Labels, share: float, seed: int) -> HeldOut:
    """Chooses the examples to hold out, the same share of each class.

    Args:
      labels: label of each example.
      share: share of each class, 0 to less than 1, rounded to whole examples; at least one example
        of each class remains.
      seed: seed of the choice; a larger share with the same seed contains the smaller one.

    >>> split_labels(np.array([0, 0, 0, 0, 1, 1]), 0.5, seed=0).held_out.tolist()
    [0, 2, 4]
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        examples = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, int(label)]).permutation(examples)
        chosen[order[: min(round(share * len(order)), len(order) - 1)]] = True
    return HeldOut(np.flatnonzero(~chosen), np.flatnonzero(chosen))


def without_held_out(
    split: InMemorySplit | StreamingSplit, share: float, seed: int
) -> InMemorySplit | StreamingSplit:
    """Returns the part of a training split that is trained on.

    Raises:
      UserError: if the share is so small that no example is held out.
    """
    if isinstance(split, InMemorySplit):
        indices = split_labels(split.labels, share, seed)
        _check_held_out(indices, share, "the training split")
        return _select_in_memory(split, indices.train)
    indices = split_labels(_source_labels(split.source), share, seed)
    _check_held_out(indices, share, split.source.name)
    source = SourceSubset(split.source, indices.train, split.source.name)
    return replace(split, source=source, skipped={})


def trained_source(source: Source, share: float, seed: int) -> Source:
    """Returns the examples of a training split that are trained on; see `held_out_source`."""
    indices = split_labels(_source_labels(source), share, seed)
    _check_held_out(indices, share, source.name)
    return SourceSubset(source, indices.train, f"{source.name}, without held-out {share:g}")


def held_out_source(source: Source, share: float, seed: int) -> Source:
    """Returns the held-out examples of a training split.

    Args:
      source: the training split. If training reads it into memory, it must be in memory here as
        well (`ArraySource`), since only then are all labels known.
      share: share of the examples.
      seed: seed of the choice.

    Raises:
      UserError: if no example is held out.
    """
    indices = split_labels(_source_labels(source), share, seed)
    _check_held_out(indices, share, source.name)
    return SourceSubset(source, indices.held_out, f"{source.name}, held-out {share:g}")


def _check_held_out(indices: HeldOut, share: float, name: str) -> None:
    if not len(indices.held_out):
        raise UserError(
            f"config.data.validation is {share:g}, which holds out none of the"
            f" {len(indices.train)} examples of {name}: expected a larger share"
        )


def _select_in_memory(split: InMemorySplit, indices: Int[np.ndarray, " n"]) -> InMemorySplit:
    return InMemorySplit(
        split.images[indices],
        split.labels[indices],
        split.skipped,
        split.mean_std_override,
        split.source_fingerprint,
    )


def _source_labels(source: Source) -> Labels:
    """Returns the labels of a split; zeros where they are known only after reading the images."""
    labels = source.labels()
    return np.zeros(len(source), np.int64) if labels is None else labels


class SourceSubset:
    """Some examples of a split (see `Source`).

    Args:
      source: the split.
      indices: the examples, in order.
      name: name of the subset, for messages.
    """

    def __init__(self, source: Source, indices: Int[np.ndarray, " n"], name: str) -> None:
        self.source, self.indices, self.name = source, indices, name
        self.classes, self.problems = source.classes, source.problems

    def __len__(self) -> int:
        return len(self.indices)

    def location(self, index: int) -> str:
        """Returns the file, or split and index, of an example."""
        return self.source.location(int(self.indices[index]))

    def file_name(self, index: int) -> str:
        """Returns the name of the file of an example."""
        return self.source.file_name(int(self.indices[index]))

    def labels(self) -> Labels | None:
        """Returns the label of each example; None if they are unknown."""
        labels = self.source.labels()
        return None if labels is None else labels[self.indices]

    def read(
        self, index: int, channels: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Returns the pixels and the label of an example."""
        return self.source.read(int(self.indices[index]), channels)

    def fingerprint(self) -> Fingerprint:
        """Returns what identifies the whole split, and the number of examples of the subset."""
        whole = self.source.fingerprint()
        subset = {"examples": len(self), "whole": whole["examples"]}
        if "per_class" not in whole:
            return whole | subset
        labels = _source_labels(self.source)[self.indices]
        return whole | subset | {"per_class": np.bincount(labels).tolist()}
