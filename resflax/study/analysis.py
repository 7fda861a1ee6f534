"""Comparison of learning curves: the best learning rate, and the effect of depth."""

from collections.abc import Sequence
from typing import Any

# In percentage points; a smaller difference of means does not count as degradation.
MIN_INCREASE = 1.0
SPLITS = ("train", "test")


def best_rate_index(curves: dict[str, Any]) -> int:
    """Returns the index of the learning rate with the lowest final training error.

    Errors are means over seeds; ties are decided by the final training loss.

    Args:
      curves: see `resflax.study.sweep.train_sweep`.

    >>> best_rate_index({"train": [[[9.0]], [[2.0]]], "loss": [[[1.0]], [[0.1]]]})
    1
    """

    def final(i: int) -> tuple[float, float]:
        errors, losses = ([seed[-1] for seed in curves[key][i]] for key in ("train", "loss"))
        return sum(errors) / len(errors), sum(losses) / len(losses)

    return min(range(len(curves["train"])), key=final)


def mean(values: Sequence[float]) -> float:
    """Returns the mean."""
    return sum(values) / len(values)


def format_range(values: Sequence[float]) -> str:
    """Formats mean, minimum and maximum.

    >>> format_range([1.0, 2.0])
    '1.50 (1.00 to 2.00)'
    """
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def errors_at_best_rate(curves: dict[str, Any], rates: Sequence[float]) -> dict[str, Any]:
    """Returns the best learning rate and the final errors with it, one per seed.

    >>> curves = {"train": [[[9.0, 2.0]]], "test": [[[9.0, 3.0]]], "loss": [[[1.0, 0.1]]]}
    >>> errors_at_best_rate(curves, [0.5])
    {'learning_rate': 0.5, 'train_error': [2.0], 'test_error': [3.0]}
    """
    best = best_rate_index(curves)
    errors = {f"{split}_error": [seed[-1] for seed in curves[split][best]] for split in SPLITS}
    return {"learning_rate": rates[best]} | errors


def error_increase(shallow: Sequence[float], deep: Sequence[float]) -> dict[str, Any]:
    """Computes by how many points the deeper network's error is higher, over seeds.

    It "degrades" if the means differ by at least `MIN_INCREASE` and every seed of the deeper
    network has a higher error than every seed of the shallower one.

    >>> error_increase([1.0, 2.0], [5.0, 8.0])
    {'mean': 5.0, 'minimum': 4.0, 'maximum': 6.0, 'seeds': 2, 'degrades': True}
    >>> error_increase([1.0, 6.0], [5.0, 8.0])["degrades"]
    False
    """
    increases = [d - s for s, d in zip(shallow, deep, strict=True)]
    mean = sum(increases) / len(increases)
    return {
        "mean": mean,
        "minimum": min(increases),
        "maximum": max(increases),
        "seeds": len(increases),
        "degrades": mean >= MIN_INCREASE and min(deep) > max(shallow),
    }


def describe_increase(kind: str, shallow: int, deep: int, increase: dict[str, Any]) -> str:
    """Describes an `error_increase` between two depths.

    >>> describe_increase("plain", 20, 56, error_increase([1.0, 2.0], [5.0, 8.0]))
    'plain-56 ended 5.0 points above plain-20 in training error (+4.0 to +6.0 over 2 seeds)'
    """
    direction = "above" if increase["mean"] >= 0 else "below"
    text = f"{kind}-{deep} ended {abs(increase['mean']):.1f} points {direction} {kind}-{shallow}"
    if increase["seeds"] == 1:
        return f"{text} in training error (one seed)"
    spread = f"{increase['minimum']:+.1f} to {increase['maximum']:+.1f}"
    return f"{text} in training error ({spread} over {increase['seeds']} seeds)"


def degradation_verdict(plain: dict[str, Any], residual: dict[str, Any]) -> tuple[str, str]:
    """Decides from the `error_increase` of both kinds whether plain networks degrade with depth.

    Returns:
      "present", "absent" or "in both", and a sentence about it.
    """
    if not plain["degrades"]:
        return "absent", "No degradation: depth does not degrade the plain networks here."
    if residual["degrades"]:
        return "in both", "Not the paper's effect: depth also degrades the residual networks."
    return "present", "Degradation: depth degrades the plain networks but not the residual ones."
