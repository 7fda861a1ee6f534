"""Evaluation of a run's networks: loss and accuracy over a split, every example once.

A single network adds up sums on the devices. An ensemble needs every member's prediction of each
example: the logits are fetched batch by batch and reduced by `resflax.metrics` on the host. So are
those of an efficient ensemble (`Spec.ensemble`), one network with several members.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from resflax.distributed import Engine
from resflax.distributed.engines import Step
from resflax.distributed.ensemble_engine import EnsembleEngine
from resflax.metrics import (
    ExampleScores,
    Uncertainty,
    ensemble_uncertainty,
    log_softmax,
    score_systems,
    summarize,
)
from resflax.metrics.risk_coverage import risk_coverage
from resflax.metrics.systems import ENSEMBLE, System
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
      step: made by `make_eval_step`, and compiled.
    """

    def __init__(self, engine: Engine, step: Step) -> None:
        self._engine, self._step = engine, step

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
        self, engine: Engine, step: Step, members: int, *, is_one_network: bool = False
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
                return result.as_dict() | {"loss": math.nan, "accuracy": 0.0}
            if not is_lost.any() or not (included & result.is_finite).any():
                return result.as_dict()
            included &= result.is_finite

    def _evaluate(
        self, state: TrainState, batches: Iterable[Any], included: Bool[np.ndarray, " members"]
    ) -> "_Result":
        result, pending = _Result(included), []
        for batch in batches:
            pending.append(self._step(state, batch))
            if len(pending) > 2:  # two batches keep the devices busy
                result.add(self._engine.to_host(pending.pop(0)))
        for outputs in pending:
            result.add(self._engine.to_host(outputs))
        return result


def compile_evaluation(run: Run) -> Step:
    """Compiles the step that evaluates a run's networks: sums, or predictions of all members."""
    if isinstance(run.engine, EnsembleEngine):
        return run.engine.compile_predict(run.predict_step)
    return run.engine.compile_eval(
        run.predict_step if run.members_of_network > 1 else run.eval_step
    )


def build_evaluator(run: Run) -> Evaluator | EnsembleEvaluator:
    """Builds the evaluator of a run."""
    engine, step, members = run.engine, compile_evaluation(run), run.members_of_network
    if isinstance(engine, EnsembleEngine):
        return EnsembleEvaluator(engine, step, run.size)
    if members > 1:
        return EnsembleEvaluator(engine, step, members, is_one_network=True)
    return Evaluator(engine, step)


class _Result:
    """The batches of one pass, reduced to the numbers that the metrics need of each example.

    Args:
      included: the members of the ensemble.

    Attributes:
      is_finite: whether all outputs of a member were finite.
    """

    def __init__(self, included: Bool[np.ndarray, " members"]) -> None:
        self._included, self.is_finite = included.copy(), np.ones(len(included), bool)
        chosen = np.flatnonzero(included) if included.any() else np.arange(len(included))
        members = [System(str(k), (k,)) for k in range(len(included))]
        self._systems = (System(ENSEMBLE, tuple(chosen.tolist())), *members)
        self._parts: list[tuple[tuple[ExampleScores, ...], Uncertainty]] = []
        self._classes = 0

    def add(self, outputs: dict[str, Any]) -> None:
        """Adds the outputs of a batch, "logits" with a member axis, "label" and "weight".

        The latter two are those of the batch, or repeated for each member.
        """
        valid = outputs["weight"].reshape(-1, outputs["logits"].shape[1])[0] > 0
        labels: Any = outputs["label"].reshape(-1, len(valid))[0, valid]
        logits: Float[np.ndarray, "members n classes"] = outputs["logits"][:, valid]
        self.is_finite &= np.isfinite(logits).all((1, 2))
        self._classes = logits.shape[-1]
        if len(labels):
            log_p = log_softmax(np.where(np.isfinite(logits), logits, 0))
            chosen = list(self._systems[0].members)
            scores = score_systems(self._systems, log_p, labels)
            self._parts.append((scores, ensemble_uncertainty(log_p[chosen])))

    def as_dict(self) -> TestMetrics:
        """Returns the metrics as JSON values."""
        scores, uncertainty = jax.tree.map(lambda *arrays: np.concatenate(arrays), *self._parts)
        ensemble, *own = (summarize(system, self._classes) for system in scores)
        pairs = list(zip(own, self.is_finite, strict=True))
        members = {
            "loss": [metrics.nll if finite else None for metrics, finite in pairs],
            "accuracy": [metrics.accuracy if finite else 0.0 for metrics, finite in pairs],
        }
        count = ensemble.examples
        if not (self._included & self.is_finite).any():
            return {"loss": math.nan, "accuracy": 0.0, "count": count, "members": members}
        names = ("accuracy", "nll", "brier", "ece", "adaptive_ece")
        values: dict[str, Any] = {name: float(getattr(ensemble, name)) for name in names}
        values |= {name: float(array.mean()) for name, array in uncertainty._asdict().items()}
        values["aurc"] = risk_coverage(scores[0].confidence, scores[0].is_correct).area
        values = {k: v if math.isfinite(v) else None for k, v in values.items()}
        return {
            "loss": values["nll"],
            "accuracy": values["accuracy"],
            "count": float(count),
            "members": members,
            "ensemble": values,
        }
