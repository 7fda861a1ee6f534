"""Systems: each member of an ensemble, the whole ensemble, and a selection of its members.

Each predicts the mean of its members' probabilities. A single network is one system. A batch of
log-probabilities `(members, n, classes)` is reduced to a few numbers per example and system.

    systems = make_systems(["runs/x#0", "runs/x#1"])  # the ensemble, and each member
    parts = [score_systems(systems, log_p, labels) for log_p, labels in batches]
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.brier import BrierSums, brier_sums
from resflax.metrics.scores import ExampleScores, log_mean_probability, score_examples
from resflax.metrics.temperature import apply_temperature

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
        return log_mean_probability(log_p[list(self.members)])


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


def scaled_log_probabilities(
    systems: Sequence[System],
    log_p: Float[np.ndarray, "members n classes"],
    temperatures: Sequence[float] = (),
) -> Iterator[Float[np.ndarray, "n classes"]]:
    """Yields the log-probabilities of each system, divided by its temperature if there are any."""
    for i, system in enumerate(systems):
        own = system.log_probabilities(log_p)
        yield apply_temperature(own, temperatures[i]) if temperatures else own


def score_systems(
    systems: Sequence[System],
    log_p: Float[np.ndarray, "members n classes"],
    labels: Int[np.ndarray, " n"],
    temperatures: Sequence[float] = (),
) -> tuple[ExampleScores, ...]:
    """Reduces a batch to what the metrics need of each example, for each system.

    Args:
      systems: see `make_systems`.
      log_p: log-probabilities of each member.
      labels: the true classes.
      temperatures: of each system; () for 1.
    """
    scaled = scaled_log_probabilities(systems, log_p, temperatures)
    return tuple(score_examples(own, labels) for own in scaled)


def sum_brier(
    systems: Sequence[System],
    log_p: Float[np.ndarray, "members n classes"],
    labels: Int[np.ndarray, " n"],
    temperatures: Sequence[float] = (),
) -> tuple[BrierSums, ...]:
    """Sums what the decomposition of the Brier score needs; see `score_systems`."""
    scaled = scaled_log_probabilities(systems, log_p, temperatures)
    return tuple(brier_sums(own, labels) for own in scaled)
