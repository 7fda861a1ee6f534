"""A run from where it is to its end: steps, records, evaluations, checkpoints."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resflax.errors import UserError
from resflax.train.checkpoint import Checkpoints, Saved
from resflax.train.curves import draw_curves
from resflax.train.feed import keep_two_in_flight
from resflax.train.interrupt import Interrupt, InterruptedRunError
from resflax.train.meter import Meter
from resflax.train.nonfinite import describe, groups, why_it_ends
from resflax.train.position import Position, here
from resflax.train.processes import (
    all_asked,
    arrays_from_first,
    from_first,
    gathered,
)
from resflax.train.progress import Progress
from resflax.train.results import results_of
from resflax.train.rundir import RunDir
from resflax.train.state import TrainState

if TYPE_CHECKING:
    from resflax.train.loop import Trainer

# Steps whose metrics may wait to be looked at.
LOOK = 64


class Fit:
    """One start of a run, which takes it from its last checkpoint to its end.

    The order at a step is: train, record, evaluate, save. So a checkpoint stands after whatever its
    step tells, and `Position` knows what that was; what was told after the last checkpoint is taken
    back and made again.
    """

    def __init__(
        self, trainer: "Trainer", run: RunDir, progress: Progress, interrupt: Interrupt
    ) -> None:
        self.trainer, self.run, self.progress, self.interrupt = trainer, run, progress, interrupt
        self.config, self.engine = trainer.config, trainer.engine
        self.pending: list[Any] = []  # metrics on the devices
        self.saved_step, self.saved_at = -1, time.monotonic()
        self.settled: Any = {}  # batch statistics of an evaluation at this step
        keep = self.config.checkpoint_keep
        self.checkpoints = Checkpoints(run.path / "checkpoints", keep) if run.writes else None

    def to_the_end(self) -> dict[str, Any]:
        """Trains, and leaves the results; see `Trainer.fit`."""
        try:
            left = self._train()
            self.progress.close()
            return self._finish(left)
        finally:
            if self.checkpoints:
                self.checkpoints.close()

    # Where it begins.

    def _begin(self) -> TrainState:
        """The state to go on from, on the devices; everything else of that place is taken over."""
        self.began = time.monotonic()
        first = self.trainer.init()
        saved = self.checkpoints.restore(first) if self.checkpoints else None
        self.position = Position()
        told = from_first(saved and [int(saved.state.step), saved.beside["position"]])
        where = here(self.engine, self.config.parallel)
        state = first
        if told:
            step, position = told
            self.position = Position.of(position)
            state = arrays_from_first(saved.state if saved else jax.tree.map(np.asarray, first))
            self.saved_step = step
            self._say(f"going on from the checkpoint of step {step}")
            if self.position.where != where:
                was = ", ".join(f"{k} {v}" for k, v in self.position.where.items())
                self._say(f"which was made with {was}: the same to rounding, not to the bit")
        elif self.run.writes and (self.run.path / "metrics.jsonl").exists():
            self._say("there is no checkpoint yet: starting at step 0")
        for warning in self.checkpoints.warnings if self.checkpoints else []:
            self._say(f"warning: {warning}")
        wrong = self.run.keep_records(
            self.position.records, self.position.records_sha256, self.saved_step
        )
        if wrong:
            self._say(f"warning: {wrong}")
        self.position.where = where
        return self.engine.place(state)

    def _say(self, line: str) -> None:
        if self.run.writes:
            self.progress.say(line)

    # The loop.

    def _train(self) -> TrainState:
        """To the last step; the state that was evaluated there, on the devices."""
        state, trainer = self._begin(), self.trainer
        first, position = int(self.engine.fetch(state.step)), self.position
        if first > trainer.steps:
            raise UserError(
                f"the checkpoint is of step {first}, the run has {trainer.steps}:"
                " raise config.epochs, or choose another --workdir"
            )
        self.meter = Meter(trainer.steps, first, position.examples, position.training)
        self.names = groups(state.params, state.batch_stats)
        left = self._evaluate(state, first) if self._due(first) else None
        advance = trainer.feed(first)
        for step in range(first + 1, trainer.steps + 1):
            state, metrics = advance(state)
            self.pending.append(metrics)
            keep_two_in_flight(self.pending)
            if step == first + 1:  # it compiles: the meter counts from its end
                jax.block_until_ready(metrics)
            left = self._after(state, step)
        if self.saved_step != trainer.steps:
            self._save(state, trainer.steps)
        return left or trainer.settle(state)

    def _after(self, state: TrainState, step: int) -> TrainState | None:
        """All that follows a step; the state that was evaluated, if it was."""
        self.meter.step(self.config.batch_size)
        self.settled, left, due = {}, None, self._due(step)
        asked = all_asked(step, bool(self.interrupt.asked))
        logs = due or step % self.config.log_every_steps == 0
        if logs or asked or len(self.pending) >= LOOK:
            self._look(step)
        if logs:
            self._record(step)
        if asked:
            self._stop(state, step)
        if due:
            left = self._evaluate(state, step)
        if self._saves(step, logs):
            self._save(state, step)
        return left

    def _due(self, step: int) -> bool:
        """Whether an evaluation belongs to a step, and was not made yet."""
        return step > self.position.evaluated and self.trainer.evaluates(step)

    def _look(self, step: int) -> None:
        """Takes in the metrics that lie on the devices, of the steps up to this one.

        Raises:
          UserError: if one is not finite, and the run is to stop then, or too many are.
        """
        fetched, self.pending = self.engine.fetch(self.pending), []
        for at, metrics in enumerate(fetched, step - len(fetched) + 1):
            finite = metrics.pop("finite").tolist()
            rate = self._rate(at)
            self.position.took({k: float(v) for k, v in metrics.items()}, all(finite))
            if all(finite):
                continue
            told = f"step {at}, learning rate {rate:.3g}, {describe(finite, self.names)}"
            if why := why_it_ends(self.config, self.position.in_row):
                kept = f"; the checkpoint of step {self.saved_step} stands" * (self.saved_step > 0)
                raise UserError(f"{told}{why}{kept}")

    def _rate(self, step: int) -> float:
        """The learning rate at a step: a dropped update leaves the schedule where it was."""
        return float(self.trainer.schedule(step - 1 - self.position.dropped))

    def _record(self, step: int) -> None:
        values = self.position.means()
        record = self._line(step, "train", values, self.meter.lap())
        self.run.record(record)
        self.progress.train(record, self.meter.left(step))

    def _line(self, step: int, split: str, values: Any, speed: float) -> dict[str, Any]:
        evaluated = split == "test"
        return {
            "step": step,
            "epoch": round(self.trainer.epoch(step), 4),
            "split": split,
            "loss": values["loss"],
            "accuracy": values["accuracy"],
            "learning_rate": self._rate(step),
            "examples_per_second": round(speed, 1),
            **({"weights": "ema"} if evaluated and self.config.ema_decay else {}),
            **({"dropped": values["dropped"]} if "dropped" in values else {}),
        }

    def _evaluate(self, state: TrainState, step: int) -> TrainState:
        """Evaluates and records it; the state that was evaluated."""
        self.trainer.between = lambda: self._stop_here(state, step)
        left = self.trainer.settle(state)
        test = self.trainer.evaluate(left, self.trainer.dataset.test)
        if not np.isfinite(test["loss"]):
            raise UserError(
                f"the test loss is {test['loss']} at step {step}, learning rate"
                f" {self._rate(step):.3g}: try a lower config.learning_rate or a config.clip_norm"
            )
        record = self._line(step, "test", test, test["count"] / self.meter.pause())
        self.run.record(record)
        self.position.test, self.position.evaluated = test, step
        if self.config.recalibrate_batches:
            self.settled = self.engine.fetch(left.batch_stats)
        self.progress.test(record, self.meter.left(step))
        return left

    # What is kept.

    def _saves(self, step: int, looked: bool) -> bool:
        """Whether a checkpoint belongs to a step; all processes say the same."""
        config, accuracy = self.config, self.position.test.get("accuracy", -1.0)
        if self.position.evaluated == step and accuracy > self.position.best:
            return True
        if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
            return True
        if not looked:  # of several processes, one clock must be asked
            return False
        minutes = (time.monotonic() - self.saved_at) / 60
        return from_first(bool(0 < config.checkpoint_every_minutes <= minutes))

    def _save(self, state: TrainState, step: int) -> None:
        """Begins to save; waits for the one before."""
        if self.pending:
            self._look(step)
        position, evaluated = self.position, self.position.evaluated == step
        accuracy = position.test["accuracy"] if evaluated else None
        if accuracy is not None:
            position.best = max(position.best, accuracy)
        whole: TrainState = self.engine.fetch(state)
        position.skipped = list(
            dict.fromkeys(position.skipped + gathered(self.trainer.dataset.skipped))
        )
        now = dataclasses.replace(
            position,
            records=self.run.records.count,
            records_sha256=self.run.records.sha256,
            seconds=position.seconds + time.monotonic() - self.began,
            examples=self.meter.examples,
            training=self.meter.seconds,
        )
        if self.checkpoints:
            beside = {"config": self.config.to_dict(), "position": now.as_dict()}
            self.checkpoints.save(Saved(whole, beside, self.settled), accuracy)
        self.saved_step, self.saved_at = step, time.monotonic()

    def _stop_here(self, state: TrainState, step: int) -> None:
        """Between two batches of an evaluation, which is left for the next start."""
        if self.interrupt.asked and jax.process_count() == 1:
            self._stop(state, step)

    def _stop(self, state: TrainState, step: int) -> None:
        """Saves and raises `InterruptedRunError`."""
        if self.saved_step != step:
            self._save(state, step)
        if self.checkpoints:
            self.checkpoints.wait()
        self.progress.close()
        raise InterruptedRunError(
            self.interrupt.asked,
            f"stopped after step {step} of {self.trainer.steps}, saved in {self.run.path}: the same"
            f" command with --workdir={self.run.path} goes on",
        )

    def _finish(self, left: TrainState) -> dict[str, Any]:
        final: TrainState = self.engine.fetch(left)
        trainer, position = self.trainer, self.position
        if self.checkpoints:
            self.checkpoints.wait()
            accuracy = f"test accuracy {position.test['accuracy']:.4f}"
            title = f"{self.config.model} on {trainer.dataset.name}, {accuracy}"
            draw_curves(self.run.records.all(), self.run.path / "curves.png", title)
        seconds = position.seconds + time.monotonic() - self.began
        results = results_of(trainer, position, final, seconds=seconds, speed=self.meter.overall)
        self.run.skipped(position.skipped)
        self.run.finish(results)
        return results
