"""Whether the contenders compute one function: no time is taken of those that do not."""

import numpy as np

from resflax.errors import UserError

# By the largest difference over the largest value. float32 on a GPU is TF32, of 11 bits.
TOLERANCE = {
    ("cpu", "float32"): 1e-4,
    ("gpu", "float32"): 2e-2,
    ("cpu", "bfloat16"): 1e-1,
    ("gpu", "bfloat16"): 1e-1,
}

Answers = dict[str, list[float]]


def difference(one: list[float], other: list[float]) -> float:
    """The largest difference over the largest value; NaN if anything is not finite."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30))


def check_equal(answers: dict[str, Answers], tolerance: float) -> dict[str, dict[str, float]]:
    """Compares every contender's answers with the first one's, and gives the differences.

    Raises:
      UserError: if one differs by more than `tolerance`.
    """
    first = next(iter(answers))
    found: dict[str, dict[str, float]] = {}
    for name, answer in answers.items():
        found[name] = {key: difference(answers[first][key], answer[key]) for key in answer}
        for key, value in found[name].items():
            if not value <= tolerance:  # so that NaN fails
                raise UserError(
                    f"{name} does not compute what {first} does: the {key} differ by {value:.2g}"
                    f" of the largest, expected at most {tolerance:g}; nothing was timed"
                )
    return found
