"""Mean corruption error: the error under corruptions relative to a reference classifier."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from resflax.metrics.checks import check_finite

Errors = Mapping[str, Float[np.ndarray, " severities"]]


def corruption_errors(errors: Errors, reference: Errors | None = None) -> dict[str, float]:
    """Returns the corruption error of each corruption, as a ratio.

    CE = sum over the severities of the error, divided by that of the reference (Hendrycks and
    Dietterich 2019, arXiv:1903.12261; there the reference is AlexNet, in percent).
    Without a reference, the mean over the severities of the error.

    Args:
      errors: top-1 errors, from 0 to 1, by corruption, at each severity.
      reference: those of the reference, for the same corruptions and severities at least.

    Raises:
      ValueError: if the reference lacks a corruption or a severity, or its errors are 0.

    >>> corruption_errors({"fog": np.array([0.1, 0.3])}, {"fog": np.array([0.2, 0.6])})
    {'fog': 0.5}
    """
    if not errors:
        raise ValueError("errors is empty: expected those of at least one corruption")
    return {name: _ratio(name, values, reference) for name, values in errors.items()}


def _ratio(name: str, values: Float[np.ndarray, " severities"], reference: Errors | None) -> float:
    values = check_finite(name, values)
    if reference is None:
        return float(values.mean())
    if name not in reference:
        raise ValueError(f"the reference has no {name!r}: it has {', '.join(sorted(reference))}")
    baseline = check_finite(f"reference {name}", reference[name])
    if baseline.shape != values.shape or not baseline.sum() > 0:
        raise ValueError(
            f"the reference of {name!r} has {baseline.size} severities and the sum of errors "
            f"{baseline.sum():g}: expected {values.size} severities and a positive sum"
        )
    return float(values.sum() / baseline.sum())


def relative_corruption_errors(
    errors: Errors, clean: float, reference: Errors, reference_clean: float
) -> dict[str, float]:
    """Returns the relative corruption errors: the rise of the error over that without corruption.

    Hendrycks and Dietterich 2019, arXiv:1903.12261.

    Args:
      errors: top-1 errors by corruption, at each severity.
      clean: top-1 error without corruption.
      reference: errors of the reference.
      reference_clean: error of the reference without corruption.

    Raises:
      ValueError: as `corruption_errors`.
    """
    rises = {name: np.asarray(values) - clean for name, values in errors.items()}
    baseline = {name: np.asarray(values) - reference_clean for name, values in reference.items()}
    return corruption_errors(rises, baseline)


def mean_corruption_error(errors: Errors, reference: Errors | None = None) -> float:
    """Returns the mean over the corruptions of `corruption_errors`."""
    return float(np.mean(list(corruption_errors(errors, reference).values())))
