"""Temperature scaling: one scalar, fitted on held-out data, that divides all logits."""

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.checks import check_finite, check_labels, check_logits
from resflax.metrics.scores import log_softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
# Relative accuracy of the temperature, and the most Newton steps or halvings that it can need.
TOLERANCE = 1e-10
MAX_STEPS = 100


def fit_temperature(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """Returns the temperature that minimizes the negative log-likelihood (Guo et al. 2017).

    arXiv:1706.04599, section 4.2. For an ensemble, pass the log of its mean probabilities: one
    temperature scales the ensemble's prediction, after averaging (Ashukha et al. 2020,
    arXiv:2002.06470).

    The negative log-likelihood is convex in the inverse temperature b, with the derivative
    `mean(sum(p * z) - z[label])`, `p = softmax(b * z)`. Its root is found by Newton's method in
    log b, with halving of the bracket where a step would leave it.

    Args:
      logits: logits or log-probabilities of held-out examples, finite.
      labels: their classes.

    Returns:
      A temperature from 0.01 to 100. It is 0.01 if all examples are classified correctly, and 100
      if the logits say nothing of the labels: in both cases no finite optimum exists.

    Raises:
      ValueError: if shapes do not fit, a label is out of range, or a logit is not finite.

    >>> logits = np.log([[0.9, 0.1]] * 4)  # 90 % confident, 75 % correct
    >>> temperature = fit_temperature(logits, np.array([0, 0, 0, 1]))
    >>> np.exp(apply_temperature(logits[:1], temperature)).round(6)
    array([[0.75, 0.25]])
    """
    z = check_finite("logits", check_logits(logits))
    labels = check_labels(labels, *z.shape)
    z = z - z.max(-1, keepdims=True)
    label_z = z[np.arange(len(z)), labels].mean()
    low, high = np.log(1 / MAX_TEMPERATURE), np.log(1 / MIN_TEMPERATURE)
    if _slope(z, label_z, low)[0] >= 0:
        return MAX_TEMPERATURE
    if _slope(z, label_z, high)[0] <= 0:
        return MIN_TEMPERATURE
    log_b = 0.0
    for _ in range(MAX_STEPS):
        slope, curvature = _slope(z, label_z, log_b)
        low, high = (log_b, high) if slope < 0 else (low, log_b)
        previous, step = log_b, slope / curvature if curvature > 0 else np.inf
        log_b = log_b - step
        if not low < log_b < high:
            log_b = (low + high) / 2
        if abs(log_b - previous) < TOLERANCE:
            break
    return float(np.exp(-log_b))


def _slope(z: Float[np.ndarray, "n classes"], label_z: float, log_b: float) -> tuple[float, float]:
    """Returns the derivative of the loss by b, and the derivative of that by log b."""
    b = np.exp(log_b)
    p = np.exp(b * z)
    p /= p.sum(-1, keepdims=True)
    mean = np.einsum("nc,nc->n", p, z)
    variance = np.einsum("nc,nc,nc->n", p, z, z) - np.square(mean)
    return float(mean.mean() - label_z), float(b * variance.mean())


def apply_temperature(
    logits: Float[np.ndarray, "*n classes"], temperature: float
) -> Float[np.ndarray, "*n classes"]:
    """Returns the log-probabilities of logits, or of log-probabilities, divided by a temperature.

    Raises:
      ValueError: if the temperature is not positive and finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature}: expected a positive number")
    return log_softmax(np.asarray(logits, np.float64) / temperature)
