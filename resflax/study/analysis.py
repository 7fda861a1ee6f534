"""What the curves say, from the curves alone."""

from collections.abc import Sequence
from typing import Any

# Percentage points; a difference of means below it is called none.
MIN_RISE = 1.0
SPLITS = ("train", "test")


def best_rate(curve: dict[str, Any]) -> int:
    """Which of the learning rates ended at the lowest training error, then loss; mean over seeds.

    >>> best_rate({"train": [[[9.0]], [[2.0]]], "loss": [[[1.0]], [[0.1]]]})
    1
    """

    def final(i: int) -> tuple[float, float]:
        errors, losses = ([seed[-1] for seed in curve[key][i]] for key in ("train", "loss"))
        return sum(errors) / len(errors), sum(losses) / len(losses)

    return min(range(len(curve["train"])), key=final)


def at_best(curve: dict[str, Any], rates: Sequence[float]) -> dict[str, Any]:
    """The best learning rate, and the final errors there, a value a seed.

    >>> at_best({"train": [[[9.0, 2.0]]], "test": [[[9.0, 3.0]]], "loss": [[[1.0, 0.1]]]}, [0.5])
    {'learning_rate': 0.5, 'train_error': [2.0], 'test_error': [3.0]}
    """
    best = best_rate(curve)
    errors = {f"{split}_error": [seed[-1] for seed in curve[split][best]] for split in SPLITS}
    return {"learning_rate": rates[best]} | errors


def rise(shallow: Sequence[float], deep: Sequence[float]) -> dict[str, Any]:
    """By how many points the deeper network's error is higher, seed by seed.

    It "degrades" if the means differ by a point or more and every seed of the deeper network errs
    more than every seed of the shallower one.

    >>> rise([1.0, 2.0], [5.0, 8.0])
    {'mean': 5.0, 'least': 4.0, 'most': 6.0, 'seeds': 2, 'degrades': True}
    >>> rise([1.0, 6.0], [5.0, 8.0])["degrades"]
    False
    """
    rises = [d - s for s, d in zip(shallow, deep, strict=True)]
    mean = sum(rises) / len(rises)
    return {
        "mean": mean,
        "least": min(rises),
        "most": max(rises),
        "seeds": len(rises),
        "degrades": mean >= MIN_RISE and min(deep) > max(shallow),
    }


def sentence(kind: str, shallow: int, deep: int, rise: dict[str, Any]) -> str:
    """A plain sentence for a rise.

    >>> sentence("plain", 20, 56, rise([1.0, 2.0], [5.0, 8.0]))
    'plain-56 ended 5.0 points above plain-20 in training error (+4.0 to +6.0 over 2 seeds)'
    """
    where = "above" if rise["mean"] >= 0 else "below"
    text = f"{kind}-{deep} ended {abs(rise['mean']):.1f} points {where} {kind}-{shallow}"
    if rise["seeds"] == 1:
        return f"{text} in training error (one seed)"
    spread = f"{rise['minimum']:+.1f} to {rise['maximum']:+.1f} over {rise['seeds']} seeds"
    return f"{text} in training error ({spread})"


def verdict(plain: dict[str, Any], residual: dict[str, Any]) -> tuple[str, str]:
    """One of "present", "absent" and "in both", and what that means."""
    if not plain["degrades"]:
        return "absent", ". Degradation is absent: depth did not hurt the plain networks here."
    if residual["degrades"]:
        return "in both", ". Not the paper's effect: depth hurt the residual networks as well."
    return "present", ". Degradation is there: depth hurt the plain networks and no residual one."
