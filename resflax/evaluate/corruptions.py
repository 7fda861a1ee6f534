"""Evaluation under corruptions: every example once under each corruption and severity."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from resflax.data import StreamingSplit
from resflax.data.corruptions import corrupt_batch
from resflax.distributed import make_engine
from resflax.evaluate.classes import LabelMap
from resflax.evaluate.classifier import pad_rows
from resflax.evaluate.log_probabilities import MAX_PENDING, Classify, Rows, average_views
from resflax.evaluate.run import Evaluated, Reduction, gather_parts, read_batches, reduce_rows
from resflax.evaluate.views import Views
from resflax.metrics import score_examples
from resflax.metrics.calibration import BINS, expected_gap, width_bin_index
from resflax.metrics.systems import System


class Condition(NamedTuple):
    """A corruption, a key of `CORRUPTIONS`, and its severity."""

    name: str
    severity: int


class Corruptor:
    """Corrupts batches on all local devices, each corruption compiled once for all severities.

    Args:
      seed: an image depends on (seed, corruption, severity, index) only.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.devices = seed, jax.local_devices()
        self._engine = make_engine("mesh", self.devices) if len(self.devices) > 1 else None
        self._compiled: dict[str, Callable[..., Array]] = {}

    def __call__(
        self,
        condition: Condition,
        images: UInt8[np.ndarray, "n h w c"],
        indices: Int[np.ndarray, " n"],
    ) -> UInt8[Array, "n h w c"]:
        """Returns the corrupted images, possibly before they are computed."""
        if condition.name not in self._compiled:
            corrupt = partial(corrupt_batch, condition.name, seed=self.seed)
            self._compiled[condition.name] = jax.jit(corrupt)
        batch = (images, indices.astype(np.int32))
        if self._engine:
            count = len(self.devices)
            batch = (pad_rows(images, self.devices), np.pad(batch[1], (0, -len(images) % count)))
            batch = self._engine.shard_batch(batch)
        severity = jnp.asarray(condition.severity, jnp.int32)
        return self._compiled[condition.name](*batch, severity)[: len(images)]


class CorruptedSums(NamedTuple):
    """Sums over examples, of each system; the last axis is the bin of the confidence.

    Attributes:
      examples: number of examples.
      correct: number of correct predictions.
      confidence: sum of the probabilities of the predictions.
      nll: sum of the negative log-likelihoods, without bins.
    """

    examples: Float[np.ndarray, "systems bins"]
    correct: Float[np.ndarray, "systems bins"]
    confidence: Float[np.ndarray, "systems bins"]
    nll: Float[np.ndarray, " systems"]

    @property
    def accuracy(self) -> Float[np.ndarray, " systems"]:
        """Share of correct predictions."""
        return self.correct.sum(-1) / self.examples.sum(-1)

    @property
    def mean_nll(self) -> Float[np.ndarray, " systems"]:
        """Mean negative log-likelihood, nats."""
        return self.nll / self.examples.sum(-1)

    @property
    def ece(self) -> Float[np.ndarray, " systems"]:
        """Expected calibration error, 15 bins (Guo et al. 2017, arXiv:1706.04599, equation 3)."""
        return expected_gap(self.correct - self.confidence, self.examples.sum(-1))


def sum_scores(systems: Sequence[System], rows: Rows) -> CorruptedSums:
    """Sums the scores of a batch; see `CorruptedSums`."""
    parts = []
    for system in systems:
        scores = score_examples(system.log_probabilities(rows.log_p), rows.labels)
        bins = width_bin_index(scores)
        parts.append(
            CorruptedSums(
                examples=np.bincount(bins, minlength=BINS).astype(np.float64),
                correct=np.bincount(bins, scores.is_correct, BINS),
                confidence=np.bincount(bins, scores.confidence, BINS),
                nll=np.asarray(-scores.label_log_probability.sum()),
            )
        )
    return CorruptedSums(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def corrupted_sums(systems: Sequence[System]) -> Reduction:
    """Returns the reduction to `CorruptedSums`."""
    return Reduction(lambda rows: (), partial(sum_scores, systems))


def evaluate_corrupted(
    classify: Classify,
    split: StreamingSplit,
    views: Views,
    label_map: LabelMap,
    reduction: Reduction,
    conditions: Sequence[Condition],
    *,
    seed: int,
    batch_size: int,
    num_workers: int = 0,
    on_batch: Callable[[int, Condition], None] = lambda examples, condition: None,
) -> dict[Condition, Evaluated]:
    """Evaluates every example of a split under each condition; images are read once.

    The images are corrupted at the network's input size, after resizing and cropping, as in
    ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261).

    Args:
      classify: see `evaluate_split`.
      split: read with the transform of `views`.
      views: the views of each corrupted image, of one crop.
      label_map: the classes that count, and the labels.
      reduction: what is kept of each batch, such as `corrupted_sums`.
      conditions: the corruptions and their severities.
      seed: of the random corruptions.
      batch_size: see `evaluate_split`.
      num_workers: see `evaluate_split`.
      on_batch: called after each batch and condition with the number of its examples.

    Raises:
      UserError: see `evaluate_split`.
    """
    parts: dict[Condition, list[Any]] = {condition: [] for condition in conditions}
    remaining = dict.fromkeys(conditions, len(split))
    batches = read_batches(split, batch_size=batch_size, num_workers=num_workers)
    logits = _classify(classify, batches, views, conditions, Corruptor(seed))
    for condition, batch, views_logits in logits:
        rows = average_views(batch, views_logits, label_map.columns)
        parts[condition].append(reduce_rows(rows, label_map, split, reduction))
        done = min(len(rows.indices) * jax.process_count(), remaining[condition])
        remaining[condition] -= done
        on_batch(done, condition)
    return {condition: _gather(found, split) for condition, found in parts.items()}


def _classify(
    classify: Classify,
    batches: Iterator[Any],
    views: Views,
    conditions: Sequence[Condition],
    corrupt: Corruptor,
) -> Iterator[tuple[Condition, Any, list[Any]]]:
    """Yields each batch under each condition, with the logits of its views."""
    pending: deque[tuple[Condition, Any, list[Any]]] = deque()
    for batch in batches:
        for condition in conditions:
            images: Any = corrupt(condition, batch["image"], batch["index"])
            logits = [classify(view, batch["index"]) for view in views.of_batch(images)]
            pending.append((condition, batch, logits))
            if len(pending) > MAX_PENDING:
                yield pending.popleft()
    yield from pending


def _gather(found: list[Any], split: StreamingSplit) -> Evaluated:
    """Joins the batches of one condition, of all processes."""
    sums = jax.tree.map(lambda *arrays: np.sum(arrays, 0), *(sums for _, sums in found))
    return gather_parts([part for part, _ in found], sums, split)
