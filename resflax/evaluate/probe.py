"""Linear probe: a logistic regression on the features of a trained network."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from resflax.data import StreamingSplit, eval_batches
from resflax.errors import UserError

# Inverse regularization strengths of scikit-learn, among which cross validation chooses.
CS = (0.001, 0.01, 0.1, 1.0)
FOLDS = 3
MAX_ITERATIONS = 1000


class Features(NamedTuple):
    """Features and labels of the examples of a split that can be read.

    Attributes:
      values: pooled features.
      labels: labels of the dataset.
    """

    values: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]


class Probe(NamedTuple):
    """Result of a linear probe.

    Attributes:
      accuracy: on the test features.
      c: the inverse regularization strength.
      cv_accuracy: mean accuracy of cross validation for each strength; {} if it was given.
      folds: number of folds; 0 without cross validation.
      converged: whether the solver converged.
    """

    accuracy: float
    c: float
    cv_accuracy: dict[float, float]
    folds: int
    converged: bool


def extract_features(
    predict: Callable[[Any], Array],
    split: StreamingSplit,
    *,
    batch_size: int,
    num_workers: int = 0,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> Features:
    """Computes the features of every example of a split.

    Args:
      predict: maps uint8 images `(n, h, w, c)` to features, of which the first n rows count.
      split: the examples, with their transform.
      batch_size: images per batch.
      num_workers: worker processes that read images; 0 for threads.
      on_batch: called after each batch with the number of its examples.

    Raises:
      UserError: if an example cannot be read and is not skipped, or a feature is not finite.
    """
    parts = []
    for batch in eval_batches(split, batch_size=batch_size, num_workers=num_workers):
        is_read = np.flatnonzero(batch["weight"])
        values = np.asarray(predict(batch["image"]), np.float32)[is_read]
        if not np.isfinite(values).all():
            raise UserError(f"features of {split.source.name} are not finite: check the weights")
        parts.append((values, batch["label"][is_read]))
        on_batch(len(is_read))
    values, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Features(values, labels)


def require_sklearn() -> None:
    """Raises `UserError` if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as e:
        raise UserError('the linear probe needs scikit-learn: pip install "resflax[probe]"') from e


def fit_probe(
    train: Features,
    test: Features,
    *,
    cs: Sequence[float] = CS,
    on_fit: Callable[[], None] = lambda: None,
) -> Probe:
    """Fits a multinomial logistic regression on standardized features, and tests it.

    Each feature is scaled to mean 0 and variance 1 by the training examples of a fit. With several
    strengths, stratified cross validation on the training features chooses the one with the highest
    accuracy, the smallest of equal ones. No test feature takes part in it.

    Args:
      train: features to fit.
      test: features to test.
      cs: inverse regularization strengths `C` of scikit-learn.
      on_fit: called after each of the `count_fits` fits.

    Raises:
      UserError: if scikit-learn is not installed, or the training features have one class.
    """
    require_sklearn()
    folds = _folds(train.labels, cs)
    scores = dict.fromkeys(cs, 0.0) if folds else {}
    for c in scores:
        scores[c] = _cross_validate(train, c, folds, on_fit)
    best = max(scores, key=lambda c: (scores[c], -c)) if scores else cs[0]
    model = _fit(train, best)
    on_fit()
    accuracy = float(np.mean(model.predict(test.values) == test.labels))
    return Probe(accuracy, best, scores, folds, int(model[-1].n_iter_.max()) < MAX_ITERATIONS)


def count_fits(labels: Int[np.ndarray, " n"], cs: Sequence[float]) -> int:
    """Returns the number of regressions that `fit_probe` fits."""
    return _folds(labels, cs) * len(cs) + 1


def _folds(labels: Int[np.ndarray, " n"], cs: Sequence[float]) -> int:
    """Returns the number of folds: at most the examples of the smallest class, 0 for none.

    Raises:
      UserError: if there are fewer than two classes, or too few examples to choose a strength.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise UserError(f"the training split has {len(classes)} class: expected two or more")
    if len(cs) == 1:
        return 0
    if min(counts) < 2:
        raise UserError(
            f"the class with label {classes[counts.argmin()]} has one training example, too few"
            " for cross validation: set --c, such as --c=0.1"
        )
    return min(FOLDS, int(min(counts)))


def _cross_validate(train: Features, c: float, folds: int, on_fit: Callable[[], None]) -> float:
    """Returns the mean accuracy of the folds."""
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    accuracies = []
    for fit, held_out in splitter.split(train.values, train.labels):
        model = _fit(Features(train.values[fit], train.labels[fit]), c)
        correct = model.predict(train.values[held_out]) == train.labels[held_out]
        accuracies.append(np.mean(correct))
        on_fit()
    return float(np.mean(accuracies))


def _fit(train: Features, c: float) -> Any:
    """Returns the fitted pipeline."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MAX_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `Probe.converged`
        return model.fit(train.values, train.labels)
