"""The parts of a run, put together and checked: what trains, on what, and how it is evaluated."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from resflax.data import Dataset, Split
from resflax.distributed.engines import Engine, make_engine
from resflax.errors import UserError
from resflax.run.progress import Progress
from resflax.run.signals import Interrupt
from resflax.run.workdir import Workdir
from resflax.train.accumulate import check_micro_batches
from resflax.train.builders import (
    build_normalizer,
    build_optimizer,
    build_schedule,
    build_state,
    build_steps,
    total_steps,
)
from resflax.train.input_pipeline import (
    StepFn,
    device_feed,
    eval_iterator,
    fits_on_device,
    host_feed,
    keep_two_in_flight,
)
from resflax.train.loop import Fit
from resflax.train.nonfinite import check_action
from resflax.train.settle import check_precise_bn, make_statistics_step, plain_batches, settled
from resflax.train.state import TrainState


def ends_epochs(step: int, *, batch_size: int, examples: int) -> bool:
    """Whether the examples of steps 1 to `step` fill a multiple of `examples` that fewer did not.

    >>> [step for step in range(1, 9) if ends_epochs(step, batch_size=4, examples=10)]
    [3, 5, 8]
    """
    return step * batch_size // examples > (step - 1) * batch_size // examples


class Trainer:
    """One run: a model, a dataset and a config, ready to `fit`.

    Everything that the config names is looked up here, before any compute.

    Raises:
      UserError: if the config does not fit the dataset or the devices.
    """

    def __init__(
        self, model: nn.Module, dataset: Dataset, config: ConfigDict, start: Any = None
    ) -> None:
        """`start` are the variables to begin with; None to initialise them from the seed."""
        self.model, self.dataset, self.config, self.start = model, dataset, config, start
        examples = len(dataset.train)
        self._check_data()
        self.engine: Engine = make_engine(config.parallel, fsdp=config.mesh.fsdp)
        self.engine.check_batch(config.batch_size)
        check_micro_batches(config.batch_size, len(self.engine.devices), config.grad_accum_steps)
        self._check_pairs()
        check_action(config.on_nonfinite)
        self.steps = total_steps(config, examples)
        if self.steps >= 2**31:
            raise UserError(f"{self.steps} steps are too many: lower config.epochs")
        self.schedule = build_schedule(config, examples)
        self.optimizer = build_optimizer(config, self.schedule)
        self._check_model()
        axis_name, to_input = self.engine.axis_name, build_normalizer(dataset.train)
        train_step, eval_step = build_steps(
            config, model, self.optimizer, to_input, axis_name=axis_name
        )
        statistics_step = make_statistics_step(model, normalize=to_input, axis_name=axis_name)
        self.statistics_step = self.engine.compile_eval(statistics_step)
        self.on_device = fits_on_device(config.data.placement, dataset)
        self.train_step = train_step
        self.eval_step = self.engine.compile_eval(eval_step)
        self._kept: dict[int, list[Any]] = {}
        self.between: Callable[[], None] = lambda: None  # called between batches of an evaluation

    def _check_data(self) -> None:
        """Raises `UserError` if a batch or its padding does not fit the dataset."""
        examples, batch_size = len(self.dataset.train), self.config.batch_size
        if batch_size > examples:
            raise UserError(
                f"batch_size {batch_size} is larger than the train split of"
                f" {self.dataset.name!r}, {examples} examples: use {examples} or less"
            )
        side, padding = min(self.dataset.image_shape[:2]), self.config.data.pad_crop
        if padding > side:
            raise UserError(
                f"config.data.pad_crop is {padding}: expected at most the image's side, {side}"
            )

    def _check_pairs(self) -> None:
        """Raises `UserError` if the devices cannot mix their examples in pairs."""
        count, data = len(self.engine.devices), self.config.data
        if (data.mixup or data.cutmix) and self.config.batch_size % (2 * count):
            raise UserError(
                f"mixup and CutMix take pairs: batch_size {self.config.batch_size} does not divide"
                f" by twice the {count} devices"
            )

    def _check_model(self) -> None:
        """Raises `UserError` if the model cannot take the images; computes nothing.

        The trace is the one that `init` uses later: JAX keeps it.
        """
        try:
            state = jax.eval_shape(self.init)
        except (ValueError, TypeError, OverflowError) as e:
            shape, reason = self.dataset.image_shape, str(e).splitlines()[0]
            raise UserError(
                f"{self.config.model} cannot be built on images of {shape}: {reason}"
            ) from e
        check_precise_bn(self.config, state)

    def init(self) -> TrainState:
        """The state before the first step, not yet on the engine's devices."""
        shape = self.dataset.image_shape
        return build_state(self.config, self.model, self.optimizer, shape, self.start)

    def summary(self) -> str:
        """What will be trained on what, in one line."""
        config, devices = self.config, self.engine.devices
        return (
            f"{config.model} on {self.dataset.name}: {len(self.dataset.train)} examples,"
            f" {config.epochs} epochs, {self.steps} steps of {config.batch_size} on"
            f" {len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}; compiling"
        )

    def evaluate(self, state: TrainState, examples: Split) -> dict[str, float]:
        """Loss, accuracy and count over every example once; `state` is on the engine's devices."""
        parts: list[Any] = []
        for batch in self._eval_batches(examples):
            self.between()
            parts.append(self.eval_step(state, batch))
            keep_two_in_flight(parts)
        sums = self.engine.to_host(parts)
        total = {key: math.fsum(float(part[key]) for part in sums) for key in sums[0]}
        count = total["count"]
        return {"loss": total["loss"] / count, "accuracy": total["correct"] / count, "count": count}

    def settle(self, state: TrainState) -> TrainState:
        """The state to be evaluated and left behind; `state` is on the engine's devices."""
        if not self.config.precise_bn_batches:
            return state
        mine = self.engine.local_slice(self.config.batch_size)
        batches = plain_batches(self.dataset.train, self.config, mine)
        return settled(self.engine, self.statistics_step, state, batches)

    def _eval_batches(self, examples: Split) -> Iterable[Any]:
        """On the devices, where they stay if the dataset lies there."""
        mine = self.engine.local_slice(self.config.batch_size)
        batches = map(self.engine.shard_batch, eval_iterator(examples, self.config, mine))
        if not self.on_device:
            return batches
        return self._kept.setdefault(id(examples), []) or self._keep(examples, batches)

    def _keep(self, examples: Split, batches: Iterable[Any]) -> list[Any]:
        self._kept[id(examples)].extend(batches)
        return self._kept[id(examples)]

    def fit(
        self, run: Workdir, progress: Progress, interrupt: Interrupt | None = None
    ) -> dict[str, Any]:
        """Trains to the end, from the run's last checkpoint if there is one.

        Writes records, checkpoints, curves and, last, the results, which it returns.

        Raises:
          UserError: if numbers go bad or files cannot be written; the last checkpoint stands.
          InterruptedRunError: if `interrupt` was asked to end; the step it was at is saved.
        """
        return Fit(self, run, progress, interrupt or Interrupt()).run()

    def feed(self, start: int) -> StepFn:
        """What takes a state from each step to the next, from `start` on."""
        feed: Any = device_feed if self.on_device else host_feed
        split = self.dataset.train
        return feed(self.engine, self.train_step, split, self.config, start, self.steps)

    def epoch(self, step: int) -> float:
        """Passes over the train split that end with a step."""
        return step * self.config.batch_size / len(self.dataset.train)

    def evaluates(self, step: int) -> bool:
        """Whether `step` is the last, or ends an epoch that is evaluated."""
        return step == self.steps or ends_epochs(
            step,
            batch_size=self.config.batch_size,
            examples=len(self.dataset.train) * self.config.eval_every_epochs,
        )
