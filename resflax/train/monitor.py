"""Averages the losses of a run, and stops the training of members that diverge."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resflax.errors import UserError
from resflax.run.trainer_state import METRICS, TrainerState
from resflax.train.ensemble import is_ensemble, member_seeds
from resflax.train.nonfinite import describe, stop_reason
from resflax.train.run import Run


class Monitor:
    """Checks losses of every member; a single network is the only member of its run.

    A member whose loss is not finite is reported once and no longer counts; `freeze_diverged`
    stops its training. A run ends with the last of its members, or with the first one if
    `config.ensemble.on_diverged` is "stop".

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
          UserError: if one is not finite and the run must stop.
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

    def check_test(self, test: dict[str, Any], step: int) -> bool:
        """Checks the losses of an evaluation.

        Returns:
          Whether a member has diverged since the last evaluation: the state on the devices does not
          have it yet, see `mark_diverged`.

        Raises:
          UserError: if a loss is not finite and the run must stop.
        """
        before = list(self._state.diverged_at)
        losses = test["members"]["loss"] if "members" in test else [test["loss"]]
        for k, loss in enumerate(losses):
            if (loss is None or not np.isfinite(loss)) and not self._state.diverged_at[k]:
                what = (
                    f"the test loss is {np.nan if loss is None else loss} at step {step}, learning"
                    f" rate {self.learning_rates(step)[k]:.3g}"
                )
                advice = ": try a lower config.learning_rate or a config.grad_clip_norm"
                self._end_training(k, step, what, advice, is_left_out=True)
        return before != self._state.diverged_at

    def _end_training(
        self, member: int, step: int, what: str, advice: str, *, is_left_out: bool = False
    ) -> None:
        """Marks a member as diverged and reports it, or ends the run."""
        self._state.diverged_at[member] = step
        action = self._config.ensemble.on_diverged
        if action == "stop" or all(self._state.diverged_at):
            raise UserError(f"{self._prefix(member)}{what}{advice}")
        keeps = action == "freeze" and not is_left_out
        outcome = "keeps its last finite state" if keeps else "is left out"
        self._report(f"warning: {self._prefix(member)}{what}: it {outcome}, the others continue")

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
        schedules = zip(self._run.schedules, self._state.dropped, strict=True)
        return [float(schedule(step - 1 - dropped)) for schedule, dropped in schedules]


def excluded_members(run: Run, state: TrainerState) -> list[int]:
    """Returns the indices of the members that are not part of the ensemble.

    They are those that diverged, unless their last finite state is kept, and those whose outputs
    were not finite in the last evaluation. The latter no longer train, so that every later
    evaluation leaves them out as well.
    """
    losses = state.test.get("members", {}).get("loss", [])
    not_finite = {k for k, loss in enumerate(losses) if loss is None}
    return sorted(not_finite.union(_left_out(run, state)))


def _left_out(run: Run, state: TrainerState) -> list[int]:
    """Returns the members that diverged; none if their last finite states are kept."""
    keeps = run.config.ensemble.on_diverged == "freeze"
    return [k for k, step in enumerate(state.diverged_at) if step and not keeps]
