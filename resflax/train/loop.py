"""A run from where it is to its end: steps, records, evaluations, checkpoints."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resflax.distributed.processes import (
    all_gather_strings,
    broadcast_json,
    broadcast_tree,
    reached_preemption,
)
from resflax.errors import UserError
from resflax.run.checkpoint import Checkpoints, Saved
from resflax.run.curves import draw_curves
from resflax.run.progress import Progress
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.run.throughput import Meter
from resflax.run.trainer_state import TrainerState, environment
from resflax.run.workdir import Workdir
from resflax.train.input_pipeline import keep_two_in_flight
from resflax.train.nonfinite import describe, param_group_names, stop_reason
from resflax.train.results import make_results
from resflax.train.state import TrainState

if TYPE_CHECKING:
    from resflax.train.trainer import Trainer

# Steps whose metrics may wait to be looked at.
MAX_PENDING_METRICS = 64


class Fit:
    """One start of a run, which takes it from its last checkpoint to its end.

    The order at a step is: train, record, evaluate, save. So a checkpoint stands after whatever its
    step tells, and `TrainerState` knows what that was; what was told after the last checkpoint is taken
    back and made again.
    """

    def __init__(
        self, trainer: "Trainer", run: Workdir, progress: Progress, interrupt: Interrupt
    ) -> None:
        self.trainer, self.workdir, self.progress, self.interrupt = (
            trainer,
            run,
            progress,
            interrupt,
        )
        self.config, self.engine = trainer.config, trainer.engine
        self.pending: list[Any] = []  # metrics on the devices
        self.saved_step, self.saved_at = -1, time.monotonic()
        self.eval_batch_stats: Any = {}  # batch statistics of an evaluation at this step
        keep = self.config.checkpoint_max_to_keep
        self.checkpoints = Checkpoints(run.path / "checkpoints", keep) if run.writes else None

    def run(self) -> dict[str, Any]:
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
        self.position = TrainerState()
        told = broadcast_json(saved and [int(saved.state.step), saved.metadata["position"]])
        where = environment(self.engine, self.config.parallel)
        state = first
        if told:
            step, position = told
            self.position = TrainerState.of(position)
            state = broadcast_tree(saved.state if saved else jax.tree.map(np.asarray, first))
            self.saved_step = step
            self._print(f"going on from the checkpoint of step {step}")
            if self.position.where != where:
                was = ", ".join(f"{k} {v}" for k, v in self.position.where.items())
                self._print(f"which was made with {was}: the same to rounding, not to the bit")
        elif self.workdir.writes and (self.workdir.path / "metrics.jsonl").exists():
            self._print("there is no checkpoint yet: starting at step 0")
        for warning in self.checkpoints.warnings if self.checkpoints else []:
            self._print(f"warning: {warning}")
        wrong = self.workdir.truncate_records(
            self.position.records, self.position.records_sha256, self.saved_step
        )
        if wrong:
            self._print(f"warning: {wrong}")
        self.position.where = where
        return self.engine.put_state(state)

    def _print(self, line: str) -> None:
        if self.workdir.writes:
            self.progress.say(line)

    # The loop.

    def _train(self) -> TrainState:
        """To the last step; the state that was evaluated there, on the devices."""
        state, trainer = self._begin(), self.trainer
        first, position = int(self.engine.to_host(state.step)), self.position
        if first > trainer.steps:
            raise UserError(
                f"the checkpoint is of step {first}, the run has {trainer.steps}:"
                " raise config.epochs, or choose another --workdir"
            )
        self.meter = Meter(trainer.steps, first, position.examples, position.training)
        self.names = param_group_names(state.params, state.batch_stats)
        left = self._evaluate(state, first) if self._should_evaluate(first) else None
        advance = trainer.feed(first)
        for step in range(first + 1, trainer.steps + 1):
            state, metrics = advance(state)
            self.pending.append(metrics)
            keep_two_in_flight(self.pending)
            if step == first + 1:  # it compiles: the meter counts from its end
                jax.block_until_ready(metrics)
            left = self._after_step(state, step)
        if self.saved_step != trainer.steps:
            self._save(state, trainer.steps)
        return left or trainer.settle(state)

    def _after_step(self, state: TrainState, step: int) -> TrainState | None:
        """All that follows a step; the state that was evaluated, if it was."""
        self.meter.step(self.config.batch_size)
        self.eval_batch_stats, left, due = {}, None, self._should_evaluate(step)
        asked = reached_preemption(step, bool(self.interrupt.asked))
        logs = due or step % self.config.log_every_steps == 0
        if logs or asked or len(self.pending) >= MAX_PENDING_METRICS:
            self._drain_metrics(step)
        if logs:
            self._record(step)
        if asked:
            self._stop(state, step)
        if due:
            left = self._evaluate(state, step)
        if self._should_save(step, logs):
            self._save(state, step)
        return left

    def _should_evaluate(self, step: int) -> bool:
        """Whether an evaluation belongs to a step, and was not made yet."""
        return step > self.position.evaluated and self.trainer.evaluates(step)

    def _drain_metrics(self, step: int) -> None:
        """Takes in the metrics that lie on the devices, of the steps up to this one.

        Raises:
          UserError: if one is not finite, and the run is to stop then, or too many are.
        """
        fetched, self.pending = self.engine.to_host(self.pending), []
        for at, metrics in enumerate(fetched, step - len(fetched) + 1):
            finite = metrics.pop("finite").tolist()
            rate = self._rate(at)
            self.position.took({k: float(v) for k, v in metrics.items()}, all(finite))
            if all(finite):
                continue
            told = f"step {at}, learning rate {rate:.3g}, {describe(finite, self.names)}"
            if why := stop_reason(self.config, self.position.in_row):
                kept = f"; the checkpoint of step {self.saved_step} stands" * (self.saved_step > 0)
                raise UserError(f"{told}{why}{kept}")

    def _rate(self, step: int) -> float:
        """The learning rate at a step: a dropped update leaves the schedule where it was."""
        return float(self.trainer.schedule(step - 1 - self.position.dropped))

    def _record(self, step: int) -> None:
        values = self.position.means()
        record = self._make_record(step, "train", values, self.meter.lap())
        self.workdir.record(record)
        self.progress.train(record, self.meter.left(step))

    def _make_record(self, step: int, split: str, values: Any, speed: float) -> dict[str, Any]:
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
                f" {self._rate(step):.3g}: try a lower config.learning_rate or a config.grad_clip_norm"
            )
        record = self._make_record(step, "test", test, test["count"] / self.meter.pause())
        self.workdir.record(record)
        self.position.test, self.position.evaluated = test, step
        if self.config.precise_bn_batches:
            self.eval_batch_stats = self.engine.to_host(left.batch_stats)
        self.progress.test(record, self.meter.left(step))
        return left

    # What is kept.

    def _should_save(self, step: int, looked: bool) -> bool:
        """Whether a checkpoint belongs to a step; all processes say the same."""
        config, accuracy = self.config, self.position.test.get("accuracy", -1.0)
        if self.position.evaluated == step and accuracy > self.position.best:
            return True
        if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
            return True
        if not looked:  # of several processes, one clock must be asked
            return False
        minutes = (time.monotonic() - self.saved_at) / 60
        return broadcast_json(bool(0 < config.checkpoint_every_minutes <= minutes))

    def _save(self, state: TrainState, step: int) -> None:
        """Begins to save; waits for the one before."""
        if self.pending:
            self._drain_metrics(step)
        position, evaluated = self.position, self.position.evaluated == step
        accuracy = position.test["accuracy"] if evaluated else None
        if accuracy is not None:
            position.best = max(position.best, accuracy)
        whole: TrainState = self.engine.to_host(state)
        position.skipped = list(
            dict.fromkeys(position.skipped + all_gather_strings(self.trainer.dataset.skipped))
        )
        now = dataclasses.replace(
            position,
            records=self.workdir.records.count,
            records_sha256=self.workdir.records.sha256,
            seconds=position.seconds + time.monotonic() - self.began,
            examples=self.meter.examples,
            training=self.meter.seconds,
        )
        if self.checkpoints:
            beside = {"config": self.config.to_dict(), "position": now.as_dict()}
            self.checkpoints.save(Saved(whole, beside, self.eval_batch_stats), accuracy)
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
            f"stopped after step {step} of {self.trainer.steps}, saved in {self.workdir.path}: the same"
            f" command with --workdir={self.workdir.path} goes on",
        )

    def _finish(self, left: TrainState) -> dict[str, Any]:
        final: TrainState = self.engine.to_host(left)
        trainer, position = self.trainer, self.position
        if self.checkpoints:
            self.checkpoints.wait()
            accuracy = f"test accuracy {position.test['accuracy']:.4f}"
            title = f"{self.config.model} on {trainer.dataset.name}, {accuracy}"
            draw_curves(self.workdir.records.all(), self.workdir.path / "curves.png", title)
        seconds = position.seconds + time.monotonic() - self.began
        results = make_results(trainer, position, final, seconds=seconds, speed=self.meter.overall)
        self.workdir.skipped(position.skipped)
        self.workdir.finish(results)
        return results
