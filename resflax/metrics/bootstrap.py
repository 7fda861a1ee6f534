"""Bootstrap intervals of metrics: examples are drawn with replacement (Efron 1979)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.metrics.calibration import BINS, expected_gap, width_bin_index
from resflax.metrics.checks import check_finite
from resflax.metrics.scores import ExampleScores

SAMPLES = 1000
LEVEL = 0.95
# Limit for the examples of all samples together, of statistics that sort them.
MAX_SORTED = 10_000_000
MIN_SAMPLES = 200
# Resampled indices in memory at a time.
MAX_INDICES = 4_000_000

Counts = Int[np.ndarray, "samples n"]
Statistic = Callable[..., Float[np.ndarray, "samples ..."]]


class Interval(NamedTuple):
    """A percentile interval: the quantiles of a statistic over the samples.

    Attributes:
      low: lower end; an array if the statistic is one.
      high: upper end.
    """

    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


def bootstrap_interval(
    statistic: Statistic,
    sizes: int | Sequence[int],
    *,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Returns the percentile interval of a statistic (Efron and Tibshirani 1993, chapter 13).

    Args:
      statistic: maps how often each example is drawn, `(samples, n)` for each of `sizes`, to the
        statistic of each sample: `means(values)`, `calibration_error(scores)`, or a function.
      sizes: number of examples; of each set, if there are several, which are drawn independently.
      samples: number of samples.
      level: probability that the interval should contain the statistic of the population.
      seed: equal seeds draw the same examples, so that two models are compared on the same ones.

    Raises:
      ValueError: if a size or the number of samples is not positive, or the level is out of range.

    >>> correct = np.arange(100) < 90  # accuracy 0.9, standard error 0.03
    >>> low, high = bootstrap_interval(means(correct), 100)
    >>> bool(0.82 < low < 0.87 and 0.93 < high < 0.98)
    True
    """
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not sizes or min(sizes) < 1 or samples < 1:
        raise ValueError(
            f"sizes are {sizes} and samples is {samples}: expected positive numbers of both"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: expected a number between 0 and 1")
    rngs = [np.random.default_rng([seed, i]) for i in range(len(sizes))]
    chunk, parts = max(1, MAX_INDICES // sum(sizes)), []
    for start in range(0, samples, chunk):
        rows = min(chunk, samples - start)
        drawn = (_draw(rng, rows, n) for rng, n in zip(rngs, sizes, strict=True))
        parts.append(np.asarray(statistic(*drawn)))
    values = np.concatenate(parts)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(low, high)


def bounded_samples(examples: int) -> int:
    """Returns the number of samples for a statistic that sorts the examples, such as `aurc`.

    It is `SAMPLES` for up to 10,000 examples, and fewer for more, but not below `MIN_SAMPLES`, so
    that the cost is bounded: with 200 samples an end of a 95 % interval is the fifth smallest or
    largest value.

    >>> bounded_samples(360), bounded_samples(20_000), bounded_samples(1_000_000)
    (1000, 500, 200)
    """
    return min(SAMPLES, max(MIN_SAMPLES, MAX_SORTED // examples))


def _draw(rng: np.random.Generator, samples: int, n: int) -> Counts:
    """Returns how often each of n examples is among n that are drawn with replacement."""
    drawn = rng.integers(0, n, (samples, n))
    drawn += n * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n)


def means(values: Float[np.ndarray, "n ..."]) -> Statistic:
    """Makes the statistic that is the mean of `values` over the examples.

    Accuracy, negative log-likelihood and Brier score are means; pass several as columns.
    """
    values = check_finite("values", values)

    def statistic(counts: Counts) -> Float[np.ndarray, "samples ..."]:
        return counts @ values / len(values)

    return statistic


def calibration_error(scores: ExampleScores, bins: int = BINS) -> Statistic:
    """Makes the statistic that is the expected calibration error, in bins of equal width."""
    index = width_bin_index(scores, bins)
    gaps = np.zeros((len(index), bins))
    gaps[np.arange(len(index)), index] = scores.is_correct - scores.confidence

    def statistic(counts: Counts) -> Float[np.ndarray, " samples"]:
        return expected_gap(counts @ gaps, len(gaps))

    return statistic


def aurc(scores: ExampleScores) -> Statistic:
    """Makes the statistic that is the area under the risk-coverage curve, `RiskCoverage.area`.

    Copies of an example have equal confidence. In a group of m examples of equal confidence, e of
    which are classified incorrectly, after N examples with E errors, the number of errors rises
    linearly, so that the sum of the risks `(E + e j / m) / (N + j)` for j = 1, ..., m is
    `E D + e / m (m - N D)`, where D is the difference of the harmonic numbers of N + m and N.
    """
    order = np.argsort(-scores.confidence, kind="stable")
    wrong, count = ~scores.is_correct[order], len(order)
    starts = np.append(0, np.flatnonzero(np.diff(scores.confidence[order])) + 1)
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, count + 1)))

    def statistic(counts: Counts) -> Float[np.ndarray, " samples"]:
        drawn = counts[:, order]
        size = np.add.reduceat(drawn, starts, 1)
        errors = np.add.reduceat(drawn * wrong, starts, 1)
        covered = size.cumsum(1)
        before, errors_before = covered - size, errors.cumsum(1) - errors
        rise = harmonic[covered] - harmonic[before]
        linear = errors / np.maximum(size, 1) * (size - before * rise)
        return (errors_before * rise + linear).sum(1) / count

    return statistic


def mean_statistic(statistics: Sequence[Statistic]) -> Statistic:
    """Makes the statistic that is the mean of several, as over random splits of the examples."""
    return lambda *counts: np.mean([statistic(*counts) for statistic in statistics], 0)
