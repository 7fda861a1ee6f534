"""Checks that the losses of a run are finite, and leaves out members that diverge."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resflax.errors import UserError
from resflax.run.trainer_state import METRICS, TrainerState
from resflax.train.ensemble import is_ensemble, member_seeds
from resflax.train.nonfinite import describe, stop_reason
from resflax.train.run import Run


class DivergedError(UserError):
    """The losses of a run's last member, or of the one that ends it, are not finite.

    Attributes:
      diverged_at: step at which each member diverged; 0 if it did not.
    """

    def __init__(self, message: str, diverged_at: Sequence[int]) -> None:
        super().__init__(message)
        self.diverged_at = tuple(diverged_at)


class Monitor:
    """Checks losses of every member; a single network is the only member of its run.

    A member whose loss is not finite is reported and no longer trains: `freeze_diverged` keeps its
    last finite state, which stays in the ensemble if `config.ensemble.on_diverged` is "freeze" and
    its loss in evaluations is finite. A run ends with the last of its members, or with the first
    one if `on_diverged` is "stop".

    Args:
      run: the run.
      state: of the trainer; changed here.
      group_names: result of `param_group_names`.
      report: prints a line.
    """

    def __init__(
        self,
        run: Run,
        state: TrainerState,
        group_names: list[str],
        report: Callable[[str], None],
    ) -> None:
        self._run, self._config, self._state = run, run.config, state
        self._group_names, self._report = group_names, report
        self._seeds = member_seeds(run.config)

    def add_steps(self, fetched: Sequence[dict[str, Any]], last: int, note: str) -> None:
        """Adds the metrics of consecutive steps, of which the last one has number `last`.

        Args:
          fetched: metrics of the training step, as NumPy arrays.
          last: number of the last step.
          note: end of an error message.

        Raises:
          DivergedError: if one is not finite and the run must stop.
        """
        for step, metrics in enumerate(fetched, last - len(fetched) + 1):
            finite = np.atleast_2d(metrics["finite"])
            passed = [bool(row.all()) for row in finite]
            values = zip(*(np.atleast_1d(metrics[key]).tolist() for key in METRICS), strict=True)
            rates = self.learning_rates(step)
            self._state.add_step([dict(zip(METRICS, row, strict=True)) for row in values], passed)
            for k, in_row in enumerate(self._state.in_row):
                reason = "" if passed[k] else stop_reason(self._config, in_row)
                if reason and not self._state.diverged_at[k]:
                    what = describe(finite[k].tolist(), self._group_names)
                    where = f"step {step}, learning rate {rates[k]:.3g}, {what}"
                    self._end_training(k, step, where, f"{reason}{note}")

    def check_evaluation(self, split: str, metrics: dict[str, Any], step: int) -> bool:
        """Checks the losses of an evaluation.

        Args:
          split: "validation" or "test".
          metrics: see `TestMetrics`.
          step: number of steps taken.

        Returns:
          Whether a member has diverged since the last evaluation: the state on the devices does not
          have it yet, see `mark_diverged`.

        Raises:
          DivergedError: if a loss is not finite and the run must stop.
        """
        before = list(self._state.diverged_at)
        previous = self._state.metrics_of(split)
        new, old = _losses(self._config, metrics), _losses(self._config, previous)
        for k, loss in enumerate(new):
            if np.isfinite(loss):
                continue
            rate = self.learning_rates(step)[k]
            what = f"the {split} loss is {loss} at step {step}, learning rate {rate:.3g}"
            if not before[k]:
                advice = ": try a lower config.learning_rate or a config.grad_clip"
                self._end_training(k, step, what, advice, is_left_out=True)
            elif self._keeps_diverged and (not old or np.isfinite(old[k])):
                self._warn(k, f"{what}, with its last finite state: it is left out")
        return before != self._state.diverged_at

    def _end_training(
        self, member: int, step: int, what: str, advice: str, *, is_left_out: bool = False
    ) -> None:
        """Marks a member as diverged and reports it, or ends the run."""
        self._state.diverged_at[member] = step
        everyone = all(self._state.diverged_at)
        if everyone or self._config.ensemble.on_diverged == "stop":
            last = "all members have diverged, the last one is " * (everyone and self._run.size > 1)
            raise DivergedError(
                f"{last}{self._prefix(member)}{what}{advice}", self._state.diverged_at
            )
        keeps = self._keeps_diverged and not is_left_out
        outcome = "keeps its last finite state" if keeps else "is left out"
        self._warn(member, f"{what}: it {outcome}, the others continue")

    @property
    def _keeps_diverged(self) -> bool:
        return bool(self._config.ensemble.on_diverged == "freeze")

    def _warn(self, member: int, text: str) -> None:
        self._report(f"warning: {self._prefix(member)}{text}")

    def _prefix(self, member: int) -> str:
        if not is_ensemble(self._config):
            return ""
        return f"member {member} (seed {self._seeds[member]}), "

    @property
    def excluded(self) -> list[int]:
        """Indices of the members to leave out of the next evaluation."""
        return _left_out(self._run, self._state)

    def learning_rates(self, step: int) -> list[float]:
        """Returns each member's learning rate; skipped updates do not advance the schedule."""
        # Schedules may compute with JAX, one operation at a time and with numbers of the host.
        with jax.transfer_guard("allow"):
            schedules = self._run.schedules_after(self._state.reductions(step))
            return [
                float(schedule(step - 1 - dropped))
                for schedule, dropped in zip(schedules, self._state.dropped, strict=True)
            ]


def excluded_members(run: Run, state: TrainerState) -> list[int]:
    """Returns the indices of the members that are not part of the ensemble.

    They are those that diverged, unless their last finite state is kept, and those whose outputs
    were not finite in the last evaluation. The latter no longer train, so that every later
    evaluation leaves them out as well.
    """
    losses = (_losses(run.config, metrics) for metrics in (state.validation, state.test))
    not_finite = {k for values in losses for k, loss in enumerate(values) if np.isnan(loss)}
    return sorted(not_finite.union(_left_out(run, state)))


def _losses(config: ConfigDict, metrics: dict[str, Any]) -> list[float]:
    """Returns the loss of each network in an evaluation, NaN for None; [] without evaluation."""
    if not metrics:
        return []
    losses = metrics["members"]["loss"] if is_ensemble(config) else [metrics["loss"]]
    return [np.nan if loss is None else float(loss) for loss in losses]


def _left_out(run: Run, state: TrainerState) -> list[int]:
    """Returns the members that diverged; none if their last finite states are kept."""
    keeps = run.config.ensemble.on_diverged == "freeze"
    return [k for k, step in enumerate(state.diverged_at) if step and not keeps]
