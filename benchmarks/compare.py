"""Checks that all implementations compute the same function before they are timed."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from resflax.errors import UserError

# Largest allowed difference relative to the largest value, by platform and dtype.
# float32 on a GPU is TF32, which has a significand of 11 bits.
TOLERANCE = {
    ("cpu", "float32"): 1e-4,
    ("gpu", "float32"): 2e-2,
    ("cpu", "bfloat16"): 1e-1,
    ("gpu", "bfloat16"): 1e-1,
}

Outputs = Mapping[str, ArrayLike]


def relative_difference(reference: ArrayLike, other: ArrayLike) -> float:
    """Returns the largest absolute difference divided by the largest absolute reference value.

    The result is NaN if a value is not finite, and infinite if the lengths differ.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30))


def check_equal(outputs: Mapping[str, Outputs], tolerance: float) -> dict[str, dict[str, float]]:
    """Compares the outputs of every implementation with those of the first one.

    Args:
      outputs: outputs by implementation and name ("logits", "losses").
      tolerance: largest allowed relative difference.

    Returns:
      The relative differences, by implementation and output.

    Raises:
      UserError: if a difference is larger than `tolerance` or not finite.
    """
    reference = next(iter(outputs))
    differences: dict[str, dict[str, float]] = {}
    for name, values in outputs.items():
        differences[name] = {
            key: relative_difference(outputs[reference][key], values[key]) for key in values
        }
        for key, difference in differences[name].items():
            if not difference <= tolerance:  # also true for NaN
                raise UserError(
                    f"{name} and {reference} compute different functions: their {key} differ by"
                    f" {difference:.2g} relative to the largest value, expected at most"
                    f" {tolerance:g}; nothing was timed"
                )
    return differences
