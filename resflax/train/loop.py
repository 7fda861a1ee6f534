"""The training loop: steps, records, evaluations, checkpoints."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from resflax.data.workers import WorkerLostError
from resflax.distributed import environment
from resflax.distributed.processes import reached_preemption
from resflax.errors import UserError
from resflax.run.profiler import StepProfiler
from resflax.run.progress import RunProgress
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.run.trainer_state import TrainerState
from resflax.run.workdir import Workdir
from resflax.train.call_length import CallLength
from resflax.train.checkpoints import RunCheckpoints
from resflax.train.dataset import gather_skipped
from resflax.train.ensemble import is_ensemble
from resflax.train.input_pipeline import StepFn
from resflax.train.member_step import mark_diverged
from resflax.train.monitor import Monitor
from resflax.train.nonfinite import param_group_names
from resflax.train.pending import PendingMetrics
from resflax.train.plateau import follow_plateau
from resflax.train.recorder import Recorder
from resflax.train.results import make_results
from resflax.train.state import TrainState
from resflax.train.trainer import Trainer


def fit(
    trainer: Trainer,
    workdir: Workdir,
    progress: RunProgress | None = None,
    interrupt: Interrupt | None = None,
) -> dict[str, Any]:
    """Trains to the end, from the last checkpoint in the workdir if there is one.

    Writes records, checkpoints, curves and, last, the results, which it returns.

    Args:
      trainer: the trainer of the run.
      workdir: opened with the run's config.
      progress: shows the progress; by default on stdout.
      interrupt: stops the loop after a signal; by default signals are not handled.

    Raises:
      UserError: if a loss is not finite or a file cannot be written; the last checkpoint is intact.
      InterruptedRunError: after a signal; the current step is saved.
    """
    progress = progress or RunProgress(trainer.steps, trainer.config.epochs)
    return TrainingLoop(trainer, workdir, progress, interrupt or Interrupt()).run()


class TrainingLoop:
    """The training loop of one process, from the last checkpoint to the last step.

    The order at each step is: train, record, evaluate, save. Checkpoints are written after the
    step's records. On resume, newer records are truncated and regenerated.
    """

    def __init__(
        self, trainer: Trainer, workdir: Workdir, progress: RunProgress, interrupt: Interrupt
    ) -> None:
        self.trainer, self.workdir, self.progress = trainer, workdir, progress
        self.interrupt, self.config, self.engine = interrupt, trainer.config, trainer.engine
        self.ticks = 0  # points at which the run could stop, the same for all processes
        self.eval_batch_stats: Any = {}  # precise BN of the evaluation at this step
        self.closing = contextlib.ExitStack()  # of what the loop opens
        self.checkpoints = RunCheckpoints(trainer, workdir, self._print)
        self.profiler = StepProfiler(
            self.config.profile_steps, workdir.path / "profile", writes=workdir.writes
        )

    def run(self) -> dict[str, Any]:
        """Trains, and returns the results; see `fit`."""
        try:
            with self.closing, self.profiler:
                eval_state = self._train()
                results = self._finish(eval_state)
        except BaseException:
            self.checkpoints.close(cancel_verification=True)
            raise
        self.checkpoints.close()
        self.progress.close()
        return results

    def _print(self, line: str) -> None:
        if self.workdir.writes:
            self.progress.print(line)

    def _restore(self) -> TrainState:
        """Restores the last checkpoint, or initializes; returns the state on the devices."""
        self.start_time = time.monotonic()
        restored = self.checkpoints.restore()
        self.state = TrainerState.start(self.trainer.run.size)
        here = environment(self.engine)
        if restored:
            self.state, state = restored
            self._print(f"resuming from the checkpoint at step {self.checkpoints.saved_step}")
            if self.state.environment != here:
                saved_on = ", ".join(f"{k} {v}" for k, v in self.state.environment.items())
                self._print(
                    f"it was saved with {saved_on}: results are equal to rounding, not bit for bit"
                )
        elif self.workdir.writes and (self.workdir.path / "metrics.jsonl").exists():
            self._print("there is no checkpoint yet: starting at step 0")
        if not restored:
            state = self.trainer.init()
        warning = self.workdir.truncate_records(
            self.state.records, self.state.records_sha256, self.checkpoints.saved_step
        )
        if warning:
            self._print(f"warning: {warning}")
        self.state.environment = here
        return self.engine.put_state(self.trainer.run.with_teacher(state))

    def _train(self) -> TrainState:
        """Trains to the last step; returns the state that was evaluated there, on the devices."""
        state, trainer = self._restore(), self.trainer
        first = int(np.max(self.engine.to_host(state.step)))  # equal for all members
        if first > trainer.steps:
            raise UserError(
                f"the checkpoint is at step {first}, but the run has {trainer.steps} steps:"
                f" raise config.{'max_steps' if self.config.max_steps else 'epochs'}, or choose"
                " another --workdir"
            )
        axis = None if self.config.steps_per_call == 1 else int(is_ensemble(self.config))
        self.pending = PendingMetrics(self.engine, first, axis)
        self.call_length = CallLength(self.config.steps_per_call)
        self.recorder = self._open_recorder(first)
        self.progress.resume(first)
        self.progress.show("compiling")
        names = param_group_names(state.params, state.batch_stats)
        self.monitor = Monitor(trainer.run, self.state, names, self._print)
        eval_state = None
        if self._due_splits(first):
            if first:  # writers repeat this step
                self.recorder.add_histograms(state, first)
            state, eval_state = self._evaluate(state, first)
            self._save(state, first)  # replaces the checkpoint of a run that stopped before it
        step_fn = trainer.make_step_fn(first) if first < trainer.steps else None
        step = first
        while step < trainer.steps:
            assert step_fn
            compiles = step in (first, trainer.run.phases.of_step(step).start)
            if compiles and step != first:  # the step is compiled for other sizes
                self._drain_metrics(step)
                self.recorder.throughput.expect_compilation()
                trainer.data_wait.ignore_next()
            state, count = self._call(step_fn, state, step, compiles=compiles)
            for inner in range(step + 1, step + count):
                if inner % self.config.log_every_steps == 0:
                    self._record(inner)
            step += count
            state, eval_state = self._after_call(state, step)
        if self.checkpoints.saved_step != trainer.steps:
            self._save(state, trainer.steps)
        return eval_state or trainer.eval_state(state)

    def _call(
        self, step_fn: StepFn, state: TrainState, step: int, *, compiles: bool
    ) -> tuple[TrainState, int]:
        """Takes the steps of a call after `step`; returns the state, and how many they are.

        A call that compiles takes one step, and ends with it, from where the speed is measured.
        """
        count = 1 if compiles else self._steps_of_call(step)
        throughput = self.recorder.throughput
        throughput.exclude_seconds(self.profiler.before(step + 1, state))
        with (
            self._stop_at_lost_worker(state, step),
            self.profiler.annotate(step + 1),
            self.call_length.measure(count, compiles=compiles) as results,
        ):
            state, metrics = step_fn(state, count)
            results.append(metrics)
        throughput.exclude_seconds(self.profiler.after(step + count, metrics))
        self.pending.add(metrics, count)
        if compiles:
            jax.block_until_ready(metrics)
        phase = self.trainer.run.phases.of_step(step)
        throughput.step(phase.batch_size * self.trainer.run.size, count)
        return state, count

    def _open_recorder(self, step: int) -> Recorder:
        """Opens the recorder of a run that starts or resumes at a step, until the loop ends."""
        evaluates = bool(self._due_splits(step))
        first = 0 if self.checkpoints.saved_step < 0 else step + (not evaluates)
        recorder = Recorder(self.trainer, self.workdir, self.progress, self.state, first)
        self.closing.callback(recorder.close)
        return recorder

    def _steps_of_call(self, step: int) -> int:
        """Returns how many steps the call after `step` takes: up to what needs the state."""
        last = min(step + self.call_length.steps, self.trainer.steps)
        return next(filter(self._needs_state, range(step + 1, last)), last) - step

    def _needs_state(self, step: int) -> bool:
        """Returns whether a call ends after a step: to evaluate, save, observe, profile, resize."""
        every, profile = self.config.log_histograms_every_steps, self.config.profile_steps
        return (
            self._should_evaluate(step)
            or self.checkpoints.is_due(step, check_time=False)
            or bool(every and step % every == 0)
            or bool(profile and step in (profile[0] - 1, profile[1]))
            or step in self.trainer.run.phases.starts
        )

    def _record(self, step: int, *, evaluates: bool = False) -> None:
        """Adds the record of the steps up to `step`."""
        self._drain_metrics(step)
        means, rates = self.state.pop_means(), self.monitor.learning_rates(step)
        self.recorder.add_training(step, means, rates, evaluates=evaluates)

    def _after_call(self, state: TrainState, step: int) -> tuple[TrainState, TrainState | None]:
        """Records, evaluates, saves; returns the results of `_evaluate`, if it evaluates."""
        self.eval_batch_stats, eval_state = {}, None
        evaluates = self._should_evaluate(step)
        stops = self._must_stop()
        records = evaluates or step % self.config.log_every_steps == 0
        if records:
            self._record(step, evaluates=evaluates)
        elif stops or self.pending.is_full:
            self._drain_metrics(step)
        self.recorder.add_histograms(state, step)
        if stops:
            self._stop(state, step)
        if evaluates:
            state, eval_state = self._evaluate(state, step)
        if self._should_save(step, records):
            self._save(state, step)
        return state, eval_state

    def _should_evaluate(self, step: int) -> bool:
        """Returns whether the run evaluates at this step, and has not done so before a resume."""
        return step > self.state.evaluated and self.trainer.is_eval_step(step)

    def _due_splits(self, step: int) -> list[str]:
        """Returns the names of the splits to evaluate at this step, in order."""
        dataset, state = self.trainer.dataset, self.state
        names = [dataset.best_by] if self._should_evaluate(step) else []
        if self.trainer.is_eval_step(step):
            names += [k for k in dataset.eval_sets if state.metrics_of(k).get("step", -1) < step]
        return [*names, "test"] if self._should_test(step) else names

    def _should_test(self, step: int) -> bool:
        """Returns whether the test split is evaluated at this step, besides a validation split."""
        has_validation = self.trainer.dataset.validation is not None
        return has_validation and step == self.trainer.steps and step > self.state.tested

    def _must_stop(self) -> bool:
        """Returns whether a signal stops the run here, the same for all processes."""
        self.ticks += 1
        return reached_preemption(self.ticks, bool(self.interrupt.received))

    def _drain_metrics(self, step: int) -> None:
        """Fetches the pending metrics, up to those of `step`.

        Raises:
          UserError: if one is not finite and the run must stop.
        """
        fetched = self.pending.take(step)
        saved = self.checkpoints.saved_step
        intact = f"; the checkpoint at step {saved} is intact" if saved > 0 else ""
        self.monitor.add_steps(fetched, step, intact)

    def _evaluate(self, state: TrainState, step: int) -> tuple[TrainState, TrainState]:
        """Evaluates and records; returns the states to train from and that was evaluated.

        At the last step of a run with a validation split, the test split follows.
        """
        self.progress.show("evaluating")
        stop = partial(self._stop_evaluation, state, step)
        with self._stop_at_lost_worker(state, step):
            eval_state = self.trainer.eval_state(state, stop)
        for split in self._due_splits(step):
            state = self._evaluate_split(split, state, eval_state, step)
        return state, eval_state

    def _evaluate_split(
        self, split: str, state: TrainState, eval_state: TrainState, step: int
    ) -> TrainState:
        """Evaluates one split and records the metrics; returns the state to train from."""
        stop = partial(self._stop_evaluation, state, step)
        data = self.trainer.dataset.splits[split]
        with self._stop_at_lost_worker(state, step):
            metrics = self.trainer.evaluate(eval_state, data, stop, self.monitor.excluded)
        if self.monitor.check_evaluation(split, metrics, step):
            state = mark_diverged(state, self.engine, self.state.diverged_at)
        self.state.set_metrics(split, metrics, step)
        self.recorder.add_evaluation(step, split, metrics, self.monitor.learning_rates(step))
        if split == self.trainer.dataset.best_by:
            self.state.evaluated = step
            state = follow_plateau(state, self.trainer.run, self.state, step)
        elif split == "test":
            self.state.tested = step
        if self.config.precise_bn_batches:
            self.eval_batch_stats = self.engine.to_host(eval_state.batch_stats)
        return state

    def _should_save(self, step: int, metrics_drained: bool) -> bool:
        """Returns whether to save at this step, the same for all processes."""
        accuracy = self.state.evaluation.get("accuracy", -1.0)
        is_best = self.state.evaluated == step and accuracy > self.state.best
        return is_best or self.checkpoints.is_due(step, check_time=metrics_drained)

    def _save(self, state: TrainState, step: int) -> None:
        """Starts to save, after the previous checkpoint is on disk."""
        self._drain_metrics(step)
        accuracy = self.state.evaluation["accuracy"] if self.state.evaluated == step else None
        if accuracy is not None and accuracy > self.state.best:
            self.state.best, self.state.best_step = accuracy, step
        arrays: TrainState = self.engine.to_host(dataclasses.replace(state, teacher={}))
        skipped = self.state.skipped + gather_skipped(self.trainer.dataset)
        self.state.skipped = list(dict.fromkeys(skipped))
        trainer_state = dataclasses.replace(
            self.state,
            records=self.workdir.records.count,
            records_sha256=self.workdir.records.sha256,
            seconds=self.state.seconds + time.monotonic() - self.start_time,
            examples=self.recorder.throughput.examples,
            train_seconds=self.recorder.throughput.seconds,
            data_wait_seconds=self.recorder.data_wait_seconds,
        )
        self.checkpoints.save(step, arrays, self.eval_batch_stats, trainer_state, accuracy)

    def _stop_evaluation(self, state: TrainState, step: int) -> None:
        """Stops the run between two batches of an evaluation; the resumed run repeats it."""
        if self._must_stop():
            self._stop(state, step)

    @contextlib.contextmanager
    def _stop_at_lost_worker(self, state: TrainState, step: int) -> Iterator[None]:
        """Stops the run if it loses a worker process after a signal, which the worker got too."""
        try:
            yield
        except WorkerLostError:
            if self.interrupt.received and jax.process_count() == 1:
                self._stop(state, step)
            raise

    def _stop(self, state: TrainState, step: int) -> None:
        """Saves and raises `InterruptedRunError`."""
        if self.checkpoints.saved_step != step:
            self._save(state, step)
        self.checkpoints.wait()
        self.progress.close()
        path = self.workdir.path
        raise InterruptedRunError(
            self.interrupt.received,
            f"stopped after step {step} of {self.trainer.steps}, saved in {path}: the same command"
            f" with --workdir={path} resumes",
        )

    def _finish(self, eval_state: TrainState) -> dict[str, Any]:
        """Draws the curves and writes the results, which it returns."""
        final: TrainState = self.engine.to_host(dataclasses.replace(eval_state, teacher={}))
        self.checkpoints.wait()
        if self.workdir.writes:
            self.recorder.draw_curves(self.state)
            self.recorder.add_evaluation_table()
        results = make_results(
            self.trainer.run,
            self.state,
            final,
            seconds=self.state.seconds + time.monotonic() - self.start_time,
            examples_per_second=self.recorder.throughput.overall,
            data_wait=self.recorder.data_wait,
        )
        self.workdir.write_skipped(self.state.skipped)
        self.workdir.write_results(results)
        return results
