"""The compiled parts of a run: training step, evaluation, precise BN."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from resflax.data import Dataset, Split, StreamingSplit
from resflax.data.phases import Phases
from resflax.errors import UserError, quantity
from resflax.nn import ResNet
from resflax.train.builders import warmup_steps
from resflax.train.data_wait import DataWait
from resflax.train.ensemble import is_ensemble
from resflax.train.evaluation import TestMetrics, build_evaluator
from resflax.train.finetune import freeze_patterns
from resflax.train.freeze import count_params, split_params
from resflax.train.input_pipeline import (
    StepFn,
    eval_iterator,
    fits_on_device,
    make_device_step_fn,
    make_host_step_fn,
    train_iterator,
)
from resflax.train.precise_bn import recompute_state_batch_stats
from resflax.train.run import Run
from resflax.train.schedules import cycle_ends
from resflax.train.state import TrainState
from resflax.zoo.cost import format_count, part_costs


def is_last_of_epochs(step: int, phases: Phases, *, examples: int) -> bool:
    """Returns whether step number `step`, from 1, completes a pass over `examples` examples.

    >>> from resflax.data.phases import one_phase
    >>> [s for s in range(1, 9) if is_last_of_epochs(s, one_phase(4), examples=10)]
    [3, 5, 8]
    """
    before, after = map(phases.examples_before, (step - 1, step))
    return after // examples > before // examples


def _call_before_each(batches: Iterable[Any], before_batch: Callable[[], None]) -> Iterator[Any]:
    """Yields batches, each after a call of `before_batch`."""
    for batch in batches:
        before_batch()
        yield batch


def precise_bn_split(dataset: Dataset) -> Split:
    """Returns the training split as precise BN reads it: preprocessed as in evaluation."""
    split: Split = dataset.train
    if isinstance(split, StreamingSplit):
        transform = dataset.test.eval_transform
        return dataclasses.replace(split, seed=None, eval_transform=transform)
    return split


def describe_size(run: Run) -> str:
    """Returns the parameters of a run's network and, of a `ResNet`, its multiply-adds, in words.

    They are those of one member of an ensemble of networks.
    """
    params = run.abstract_state().params
    trainable, _ = split_params(params, freeze_patterns(run.config, run.model))
    count, trained = (count_params(tree) // run.size for tree in (params, trainable))
    text = f"{'each ' * (run.size > 1)}{format_count(count)} parameters"
    text += f", {format_count(trained)} of them trained" if trained < count else ""
    if not isinstance(run.model, ResNet):
        return text
    parts = part_costs(run.model.clone(scan=False), run.dataset.image_shape)
    return f"{text}, {format_count(sum(p.multiply_adds for p in parts))} multiply-adds per example"


class Trainer:
    """Compiled steps of a `Run` on its engine, called by `resflax.train.loop.fit`.

    Attributes:
      on_device: whether the dataset is on the devices.
      data_wait: how long the devices have waited for batches from the host.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.engine, self.dataset = run, run.config, run.engine, run.dataset
        self.steps = run.steps
        self.on_device = fits_on_device(self.config.data.placement, run.dataset)
        self.data_wait = DataWait()
        if self.config.steps_per_call > 1 and not self.on_device:
            raise UserError(
                f"config.steps_per_call is {self.config.steps_per_call}, but the training images"
                " are not kept on the devices: leave it out, or use config.data.placement=device"
            )
        self._evaluator = build_evaluator(run)
        self._stats_step = self.engine.compile_eval(run.stats_step)
        self._eval_batches: dict[int, list[Any]] = {}

    def init(self) -> TrainState:
        """Creates the state before the first step, not yet on the engine's devices."""
        return self.run.init()

    @property
    def title(self) -> str:
        """The number of networks or members, if there are several, the model and the dataset."""
        networks = f"{self.run.size} x " if is_ensemble(self.config) else ""
        count = self.run.members_of_network
        members = f" ({self.run.model.spec.ensemble}, {count} members)" if count > 1 else ""
        return f"{networks}{self.run.name}{members} on {self.dataset.name}"

    def summary(self) -> str:
        """Returns one line: model and dataset, steps and devices, the size of the model."""
        config, devices = self.config, self.engine.devices
        return (
            f"{self.title}: {quantity(len(self.dataset.train), 'example')},"
            f" {quantity(config.epochs, 'epoch')}, {quantity(self.steps, 'step')} of"
            f" {config.batch_size} on"
            f" {quantity(len(devices), f'{devices[0].platform} device')};"
            f" {describe_size(self.run)}; compiling"
        )

    def make_step_fn(self, start: int) -> StepFn:
        """Compiles the training step, with its batches from step `start` on."""
        run = self.run
        data = (self.engine, run.train_step, self.dataset.train, self.config, start, self.steps)
        if self.on_device:
            return make_device_step_fn(*data, run.phases)
        return make_host_step_fn(*data, self.data_wait, run.phases)

    def evaluate(
        self,
        state: TrainState,
        split: Split,
        before_batch: Callable[[], None] = lambda: None,
        excluded: Sequence[int] = (),
    ) -> TestMetrics:
        """Computes loss, accuracy and count over a split, every example once.

        Args:
          state: on the engine's devices.
          split: a split of the run's dataset.
          before_batch: called before each batch; it may raise to stop the evaluation.
          excluded: members to leave out of the ensemble.

        Returns:
          See `Evaluator` and `EnsembleEvaluator`.
        """

        def batches() -> Iterator[Any]:
            return _call_before_each(self._batches_of(split), before_batch)

        return self._evaluator(state, batches, excluded)

    def eval_state(
        self, state: TrainState, before_batch: Callable[[], None] = lambda: None
    ) -> TrainState:
        """Returns the state to evaluate and to save as the result: with precise BN, if configured.

        Args:
          state: on the engine's devices.
          before_batch: called before each batch of precise BN; it may raise to stop it.
        """
        if not self.config.precise_bn_batches:
            return state
        count = self.config.precise_bn_batches
        batches = train_iterator(self.engine, precise_bn_split(self.dataset), self.config, 0, count)
        return recompute_state_batch_stats(
            self.engine,
            self.run.model,
            self._stats_step,
            state,
            _call_before_each(batches, before_batch),
        )

    def _batches_of(self, split: Split) -> Iterable[Any]:
        """Returns the batches of a split on the devices; those of a small dataset are cached."""
        if id(split) in self._eval_batches:
            return self._eval_batches[id(split)]
        rows = self.engine.local_slice(self.config.batch_size)
        batches = map(self.engine.shard_batch, eval_iterator(split, self.config, rows))
        if not self.on_device:
            return batches
        return self._eval_batches.setdefault(id(split), list(batches))

    def epoch(self, step: int) -> float:
        """Returns the number of passes over the train split after `step` steps."""
        return self.run.phases.examples_before(step) / len(self.dataset.train)

    @cached_property
    def snapshot_steps(self) -> tuple[int, ...]:
        """The ends of the cycles of the learning rate, whose checkpoints are kept."""
        config, examples = self.config, len(self.dataset.train)
        if config.schedule != "cosine_cycles":
            return ()
        ends = cycle_ends(
            self.run.phases.steps, warmup_steps(config, examples), config.schedule_cycles
        )
        return tuple(step for step in ends if step <= self.steps)

    def is_eval_step(self, step: int) -> bool:
        """Returns whether the run evaluates after `step` steps: at epochs, cycles and the end."""
        examples = len(self.dataset.train) * self.config.eval_every_epochs
        return step in (self.steps, *self.snapshot_steps) or (
            step > 0 and is_last_of_epochs(step, self.run.phases, examples=examples)
        )

    def evaluations_after(self, step: int) -> int:
        """Returns the number of evaluations after `step` steps, without those at cycles' ends."""
        examples = len(self.dataset.train) * self.config.eval_every_epochs
        before = self.run.phases.examples_before
        done, total = (before(s) // examples for s in (step, self.steps))
        return max(total - done, int(step < self.steps))
