"""Evaluation of a run's networks: loss and accuracy over a split, every example once.

A single network adds up sums on the devices. An ensemble needs every member's prediction of each
example: the logits are fetched batch by batch and reduced by `resflax.metrics` on the host. So are
those of an efficient ensemble (`Spec.ensemble`), one network with several members.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from resflax.distributed import Engine
from resflax.distributed.ensemble_engine import EnsembleEngine
from resflax.metrics import concatenate, score_ensemble, summarize_ensemble
from resflax.metrics.scores import log_softmax
from resflax.train.input_pipeline import limit_in_flight
from resflax.train.run import Run
from resflax.train.state import TrainState

# Metrics of an ensemble as JSON values: "loss", "accuracy" and "count", of the mean of the members'
# probabilities; for an ensemble also "members" and "ensemble".
TestMetrics = dict[str, Any]
# Batches on the devices; called once per pass.
Batches = Callable[[], Iterable[Any]]


class Evaluator:
    """Evaluates a single network.

    Args:
      engine: the engine that states and batches are on.
      step: made by `make_eval_step`.
    """

    def __init__(self, engine: Engine, step: Any) -> None:
        self._engine, self._step = engine, engine.compile_eval(step)

    def __call__(
        self, state: TrainState, batches: Batches, excluded: Sequence[int] = ()
    ) -> TestMetrics:
        """Returns "loss" (mean cross-entropy in nats), "accuracy" and "count"."""
        del excluded
        results: list[Any] = []
        for batch in batches():
            results.append(self._step(state, batch))
            limit_in_flight(results)
        sums = self._engine.to_host(results)
        total = {key: math.fsum(float(part[key]) for part in sums) for key in sums[0]}
        count = total["count"]
        return {"loss": total["loss"] / count, "accuracy": total["correct"] / count, "count": count}


class EnsembleEvaluator:
    """Evaluates an ensemble and each of its members.

    Args:
      engine: the engine that states and batches are on.
      step: made by `make_predict_step`, and compiled.
      members: number of members.
      is_one_network: whether the members are those of one network, of which none can be left out.
    """

    def __init__(
        self, engine: Engine, step: Any, members: int, *, is_one_network: bool = False
    ) -> None:
        self._engine, self._step, self._members = engine, step, members
        self._is_one_network = is_one_network

    def __call__(
        self, state: TrainState, batches: Batches, excluded: Sequence[int] = ()
    ) -> TestMetrics:
        """Returns the metrics of the ensemble of all members but those of `excluded`.

        A member with an output that is not finite is excluded too; without any other one, and if
        the members are those of one network, "loss" is NaN.

        Returns:
          "loss", "accuracy" and "count"; "members", with the lists "loss" (None if it is not
          finite) and "accuracy"; "ensemble", with further metrics.
        """
        included = np.ones(self._members, bool)
        included[list(excluded)] = False
        while True:
            result = self._evaluate(state, batches(), included)
            is_lost = included & ~result.is_finite
            if is_lost.any() and self._is_one_network:
                included[:] = False
            if not is_lost.any() or not (included & result.is_finite).any():
                return result.as_dict(included)
            included &= result.is_finite

    def _evaluate(
        self, state: TrainState, batches: Iterable[Any], included: Bool[np.ndarray, " members"]
    ) -> "_Result":
        result, pending = _Result(self._members), []
        for batch in batches:
            pending.append(self._step(state, batch))
            if len(pending) > 2:  # two batches keep the devices busy
                result.add(self._engine.to_host(pending.pop(0)), included)
        for outputs in pending:
            result.add(self._engine.to_host(outputs), included)
        return result


def build_evaluator(run: Run) -> Evaluator | EnsembleEvaluator:
    """Builds the evaluator of a run."""
    engine, members = run.engine, run.members_of_network
    if isinstance(engine, EnsembleEngine):
        return EnsembleEvaluator(engine, engine.compile_predict(run.predict_step), run.size)
    if members > 1:
        step = engine.compile_eval(run.predict_step)
        return EnsembleEvaluator(engine, step, members, is_one_network=True)
    return Evaluator(engine, run.eval_step)


@dataclasses.dataclass
class _Result:
    """Sums over the batches of one pass."""

    size: int
    count: int = 0
    parts: list[Any] = dataclasses.field(default_factory=list)
    classes: int = 0

    def __post_init__(self) -> None:
        self.loss, self.correct = np.zeros(self.size), np.zeros(self.size)
        self.is_finite = np.ones(self.size, bool)

    def add(self, outputs: dict[str, Any], included: Bool[np.ndarray, " members"]) -> None:
        """Adds the outputs of a batch, "logits" with a member axis, "label" and "weight".

        The latter two are those of the batch, or repeated for each member.
        """
        valid = outputs["weight"].reshape(-1, outputs["logits"].shape[1])[0] > 0
        labels: Any = outputs["label"].reshape(-1, len(valid))[0, valid]
        logits: Float[np.ndarray, "members n classes"] = outputs["logits"][:, valid]
        self.is_finite &= np.isfinite(logits).all((1, 2))
        self.count, self.classes = self.count + len(labels), logits.shape[-1]
        log_p = log_softmax(np.where(np.isfinite(logits), logits, 0))
        self.loss -= log_p[:, np.arange(len(labels)), labels].sum(1)
        self.correct += (log_p.argmax(-1) == labels).sum(1)
        scored = included & self.is_finite
        if scored.any() and len(labels):
            self.parts.append(score_ensemble(log_p[scored], labels))

    def as_dict(self, included: Bool[np.ndarray, " members"]) -> TestMetrics:
        """Returns the metrics as JSON values."""
        members = {
            "loss": [
                float(loss / self.count) if finite else None
                for loss, finite in zip(self.loss, self.is_finite, strict=True)
            ],
            "accuracy": (np.where(self.is_finite, self.correct, 0) / self.count).tolist(),
        }
        if not (included & self.is_finite).any():
            return {"loss": math.nan, "accuracy": 0.0, "count": self.count, "members": members}
        metrics = summarize_ensemble(concatenate(self.parts), self.classes)
        names = ("accuracy", "nll", "brier", "ece", "adaptive_ece")
        ensemble: dict[str, Any] = {name: float(getattr(metrics.ensemble, name)) for name in names}
        ensemble |= {**metrics.uncertainty, "aurc": metrics.aurc}
        ensemble = {k: v if math.isfinite(v) else None for k, v in ensemble.items()}
        return {
            "loss": ensemble["nll"],
            "accuracy": ensemble["accuracy"],
            "count": float(self.count),
            "members": members,
            "ensemble": ensemble,
        }
