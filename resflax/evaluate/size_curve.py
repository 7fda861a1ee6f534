"""Metrics against the number of members, and the deep-ensemble equivalent."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.errors import UserError
from resflax.evaluate.systems import System
from resflax.metrics import apply_temperature

# Subsets of each size that are averaged, so that time does not grow with the square of the size.
MAX_SUBSETS = 8


class SizeScores(NamedTuple):
    """Scores of each example and size, means over the subsets of this size.

    Attributes:
      nll: negative log-likelihood of the label.
      correct: share of the subsets that classify the example correctly.
    """

    nll: Float[np.ndarray, "n sizes"]
    correct: Float[np.ndarray, "n sizes"]


def make_subsets(members: int) -> tuple[tuple[System, ...], ...]:
    """Returns subsets of each size from 1 to `members`, in which all members are equally frequent.

    They are `MAX_SUBSETS` or fewer runs of consecutive members, the first one after the last.

    >>> [[subset.members for subset in subsets] for subsets in make_subsets(3)]
    [[(0,), (1,), (2,)], [(0, 1), (1, 2), (2, 0)], [(0, 1, 2)]]
    """
    sizes = []
    for size in range(1, members + 1):
        count = min(members, MAX_SUBSETS) if size < members else 1
        starts = [i * members // count for i in range(count)]
        subsets = [tuple((start + i) % members for i in range(size)) for start in starts]
        sizes.append(tuple(System(f"{size} members", subset) for subset in subsets))
    return tuple(sizes)


def score_sizes(
    sizes: Sequence[Sequence[System]],
    log_p: Float[np.ndarray, "members n classes"],
    labels: Int[np.ndarray, " n"],
    temperatures: Sequence[Sequence[float]] = (),
) -> SizeScores:
    """Scores a batch with subsets of each size; for the arguments, see `score_systems`."""
    rows = np.arange(len(labels))
    nll, correct = [], []
    for i, subsets in enumerate(sizes):
        subset_nll, subset_correct = [], []
        for j, subset in enumerate(subsets):
            own = subset.log_probabilities(log_p)
            own = apply_temperature(own, temperatures[i][j]) if temperatures else own
            subset_nll.append(-own[rows, labels])
            subset_correct.append(own.argmax(-1) == labels)
        nll.append(np.mean(subset_nll, 0))
        correct.append(np.mean(subset_correct, 0))
    return SizeScores(np.stack(nll, 1), np.stack(correct, 1))


def size_curve(scores: SizeScores, calibrated: SizeScores | None) -> dict[str, list[float]]:
    """Returns the means over the examples, by size, as JSON values."""
    values = {
        "size": list(range(1, scores.nll.shape[1] + 1)),
        "accuracy": scores.correct.mean(0).tolist(),
        "nll": scores.nll.mean(0).tolist(),
    }
    if calibrated:
        values["calibrated_nll"] = calibrated.nll.mean(0).tolist()
    return values


def read_reference(path: Path) -> dict[str, Any]:
    """Reads the `evaluation.json` of a deep ensemble, whose size curve is the reference.

    Raises:
      UserError: if it cannot be read, or is not that of an ensemble.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the deep ensemble {path}: {reason}") from e
    if not isinstance(values, dict) or "size_curve" not in values:
        raise UserError(
            f"{path} is not the evaluation of an ensemble: expected the evaluation.json that"
            " resflax evaluate writes for one"
        )
    return values
