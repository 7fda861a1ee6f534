"""A share of the training split that is held out: for calibration and the selection of members.

It depends on the data, the share and a separate seed, not on the seed of the run, so that runs
with different seeds hold out the same examples and can form one ensemble.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from resflax.data.fingerprint import Fingerprint
from resflax.data.source import Source
from resflax.errors import UserError

Labels = Int[np.ndarray, " examples"]


class HeldOut(NamedTuple):
    """The examples of a training split that are trained on and those that are not, in order."""

    train: Int[np.ndarray, " trained"]
    held_out: Int[np.ndarray, " held_out"]


def split_labels(labels: Labels, share: float, seed: int, minimum: int = 0) -> HeldOut:
    """Chooses the examples to hold out, the same share of each class.

    Args:
      labels: label of each example.
      share: share of each class, 0 to less than 1, rounded to whole examples; at least one example
        of each class remains.
      seed: seed of the choice; a larger share with the same seed contains the smaller one.
      minimum: smallest number of examples of each class, if it has more.

    >>> split_labels(np.array([0, 0, 0, 0, 1, 1]), 0.5, seed=0).held_out.tolist()
    [0, 2, 4]
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        examples = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, int(label)]).permutation(examples)
        count = max(round(share * len(order)), minimum)
        chosen[order[: min(count, len(order) - 1)]] = True
    return HeldOut(np.flatnonzero(~chosen), np.flatnonzero(chosen))


class HeldOutSources(NamedTuple):
    """The two parts of a training split, as examples on disk or in memory."""

    train: Source
    held_out: Source


def hold_out(source: Source, share: float, seed: int, minimum: int = 0) -> HeldOutSources:
    """Holds out examples of a training split, the same share of each class.

    Args:
      source: the training split. If it does not know its labels, the share is one of all examples.
      share: share of the examples.
      seed: seed of the choice.
      minimum: see `split_labels`.

    Raises:
      UserError: if the share is so small that no example is held out.
    """
    labels = source.labels()
    labels = np.zeros(len(source), np.int64) if labels is None else labels
    indices = split_labels(labels, share, seed, minimum)
    if not len(indices.held_out):
        raise UserError(
            f"config.data.validation is {share:g}, which holds out none of the"
            f" {len(indices.train)} examples of {source.name}: expected a larger share"
        )
    return HeldOutSources(
        SourceSubset(source, indices.train, f"{source.name}, without held-out {share:g}"),
        SourceSubset(source, indices.held_out, f"{source.name}, held-out {share:g}"),
    )


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
        labels = self.labels()
        if labels is None or "per_class" not in whole:
            return {key: value for key, value in whole.items() if key != "per_class"} | subset
        return whole | subset | {"per_class": np.bincount(labels).tolist()}
