"""Systems: each member of an ensemble, the whole ensemble, and a selection of its members.

Each predicts the mean of its members' probabilities. A single network is one system.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from resflax.metrics import (
    BrierSums,
    ExampleScores,
    apply_temperature,
    brier_sums,
    mean_log_probability,
    score_examples,
)

ENSEMBLE, SELECTED = "ensemble", "selected"


class System(NamedTuple):
    """Members of an ensemble whose probabilities are averaged.

    Attributes:
      name: the WHERE of a member, `ENSEMBLE` or `SELECTED`.
      members: indices of the members.
    """

    name: str
    members: tuple[int, ...]

    def log_probabilities(
        self, log_p: Float[np.ndarray, "members n classes"]
    ) -> Float[np.ndarray, "n classes"]:
        """Returns the logarithm of the mean of the probabilities of its members."""
        return mean_log_probability(log_p[list(self.members)])


def make_systems(names: Sequence[str], selected: Sequence[int] = ()) -> tuple[System, ...]:
    """Returns the systems to evaluate; the first one is the one that was asked for.

    Args:
      names: the WHERE of each member.
      selected: the members of a selection; empty without one.

    >>> [system.name for system in make_systems(["runs/x#0", "runs/x#1"], selected=[1])]
    ['ensemble', 'runs/x#0', 'runs/x#1', 'selected']
    """
    members = [System(name, (i,)) for i, name in enumerate(names)]
    if len(names) == 1:
        return tuple(members)
    ensemble = System(ENSEMBLE, tuple(range(len(names))))
    selection = [System(SELECTED, tuple(selected))] if selected else []
    return (ensemble, *members, *selection)


class SystemScores(NamedTuple):
    """What the metrics of several systems need of a batch.

    Attributes:
      examples: scores of the examples, for each system.
      brier: sums over the examples that count, for each system.
    """

    examples: tuple[ExampleScores, ...]
    brier: tuple[BrierSums, ...]


def score_systems(
    systems: Sequence[System],
    log_p: Float[np.ndarray, "members n classes"],
    labels: Int[np.ndarray, " n"],
    counts: Bool[np.ndarray, " n"],
    temperatures: Sequence[float] = (),
) -> SystemScores:
    """Reduces a batch to what the metrics need.

    Args:
      systems: see `make_systems`.
      log_p: log-probabilities of each member.
      labels: the true classes.
      counts: which examples count.
      temperatures: of each system, which its log-probabilities are divided by; () for 1.
    """
    examples, brier = [], []
    for i, system in enumerate(systems):
        own = system.log_probabilities(log_p)
        if temperatures:
            own = apply_temperature(own, temperatures[i])
        examples.append(score_examples(own, labels))
        brier.append(_brier_sums(own, labels, counts))
    return SystemScores(tuple(examples), tuple(brier))


def _brier_sums(
    log_p: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    counts: Bool[np.ndarray, " n"],
) -> BrierSums:
    if counts.any():
        return brier_sums(log_p[counts], labels[counts])
    sums = brier_sums(log_p[:1], labels[:1])
    return BrierSums(*(np.zeros_like(array) for array in sums))
