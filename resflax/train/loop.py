"""The training loop: batches through the compiled step, records to the run's folder."""

import math
import time
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from resflax.data import Dataset, Split
from resflax.errors import UserError
from resflax.train import checkpoint
from resflax.train.accumulate import check_micro_batches
from resflax.train.build import (
    input_from,
    optimizer_from,
    schedule_from,
    state_from,
    steps_from,
    total_steps,
)
from resflax.train.curves import draw_curves
from resflax.train.feed import Advance, device_feed, evaluation, host_feed, lives_on_device
from resflax.train.meter import Meter
from resflax.train.parallel import Engine, make_engine
from resflax.train.processes import gathered
from resflax.train.progress import Progress
from resflax.train.rundir import RunDir, params_sha256
from resflax.train.settle import check_settling, make_statistics_step, plain_batches, settled
from resflax.train.state import TrainState


def ends_epochs(step: int, *, batch_size: int, examples: int) -> bool:
    """Whether the examples of steps 1 to `step` fill a multiple of `examples` that fewer did not.

    >>> [step for step in range(1, 9) if ends_epochs(step, batch_size=4, examples=10)]
    [3, 5, 8]
    """
    return step * batch_size // examples > (step - 1) * batch_size // examples


def keep_two_in_flight(results: list[Any]) -> None:
    """Waits for all but the last two: they keep the devices busy, more would pile up memory."""
    if len(results) > 2:
        jax.block_until_ready(results[-3])


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
        check_micro_batches(config.batch_size, len(self.engine.devices), config.accumulate_steps)
        self._check_pairs()
        self.steps = total_steps(config, examples)
        if self.steps >= 2**31:
            raise UserError(f"{self.steps} steps are too many: lower config.epochs")
        self.schedule = schedule_from(config, examples)
        self.optimizer = optimizer_from(config, self.schedule)
        self._check_model()
        axis_name, to_input = self.engine.axis_name, input_from(dataset.train)
        train_step, eval_step = steps_from(
            config, model, self.optimizer, to_input, axis_name=axis_name
        )
        statistics_step = make_statistics_step(model, normalize=to_input, axis_name=axis_name)
        self.statistics_step = self.engine.compile_eval(statistics_step)
        self.on_device = lives_on_device(config.data.placement, dataset)
        self.train_step = train_step
        self.eval_step = self.engine.compile_eval(eval_step)
        self._kept: dict[int, list[Any]] = {}

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
        check_settling(self.config, state)

    def init(self) -> TrainState:
        """The state before the first step, not yet on the engine's devices."""
        shape = self.dataset.image_shape
        return state_from(self.config, self.model, self.optimizer, shape, self.start)

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
            parts.append(self.eval_step(state, batch))
            keep_two_in_flight(parts)
        sums = self.engine.fetch(parts)
        total = {key: math.fsum(float(part[key]) for part in sums) for key in sums[0]}
        count = total["count"]
        return {"loss": total["loss"] / count, "accuracy": total["correct"] / count, "count": count}

    def settle(self, state: TrainState) -> TrainState:
        """The state to be evaluated and left behind; `state` is on the engine's devices."""
        if not self.config.recalibrate_batches:
            return state
        mine = self.engine.mine(self.config.batch_size)
        batches = plain_batches(self.dataset.train, self.config, mine)
        return settled(self.engine, self.statistics_step, state, batches)

    def _eval_batches(self, examples: Split) -> Iterable[Any]:
        """On the devices, where they stay if the dataset lies there."""
        mine = self.engine.mine(self.config.batch_size)
        batches = map(self.engine.split, evaluation(examples, self.config, mine))
        if not self.on_device:
            return batches
        return self._kept.setdefault(id(examples), []) or self._keep(examples, batches)

    def _keep(self, examples: Split, batches: Iterable[Any]) -> list[Any]:
        self._kept[id(examples)].extend(batches)
        return self._kept[id(examples)]

    def fit(self, run: RunDir, progress: Progress) -> dict[str, Any]:
        """Trains to the end; writes records, checkpoint, curves and, last, the results."""
        began = time.monotonic()
        meter = Meter(self.steps)
        state, test = self._train(run, progress, meter)
        progress.close()
        final: TrainState = self.engine.fetch(state)
        if run.writes:
            checkpoint.save(run.path / "checkpoints", final)
            title = (
                f"{self.config.model} on {self.dataset.name}, test accuracy {test['accuracy']:.4f}"
            )
            draw_curves(run.records(), run.path / "curves.png", title)
        skipped = gathered(self.dataset.skipped)
        results = {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "test_examples": int(test["count"]),
            "weights": "ema" if self.config.ema_decay else "params",
            "train_examples": len(self.dataset.train),
            "skipped_examples": len(skipped),
            "steps": int(final.step),
            "parameters": sum(x.size for x in jax.tree.leaves(final.params)),
            "params_sha256": params_sha256(final.params),
            "wall_seconds": round(time.monotonic() - began, 3),
            "examples_per_second": round(meter.overall, 1),
            "platform": self.engine.devices[0].platform,
            "device_count": len(self.engine.devices),
            "process_count": jax.process_count(),
            "jax_version": jax.__version__,
        }
        run.skipped(skipped)
        run.finish(results)
        return results

    def _train(
        self, run: RunDir, progress: Progress, meter: Meter
    ) -> tuple[TrainState, dict[str, float]]:
        """The loop itself; returns the last state, settled, on the devices, and its evaluation."""
        config, test = self.config, {}
        state = left = self.engine.place(self.init())
        advance = self._feed(0)
        window: list[Any] = []
        for step in range(1, self.steps + 1):
            state, metrics = advance(state)
            window.append(metrics)
            keep_two_in_flight(window)
            if step == 1:  # it compiles: the meter counts from its end
                jax.block_until_ready(metrics)
            meter.step(config.batch_size)
            evaluates = self._evaluates(step)
            if evaluates or step % config.log_every_steps == 0:
                fetched = self.engine.fetch(window)
                means = {key: float(np.mean([m[key] for m in fetched])) for key in metrics}
                record = self._record(step, "train", means, meter.lap())
                run.record(record)
                progress.train(record, meter.left(step))
                window.clear()
            if evaluates:
                left = self.settle(state)
                test = self.evaluate(left, self.dataset.test)
                record = self._record(step, "test", test, test["count"] / meter.pause())
                run.record(record)
                progress.test(record, meter.left(step))
        return left, test

    def _feed(self, start: int) -> Advance:
        """What takes a state from each step to the next, from `start` on."""
        feed: Any = device_feed if self.on_device else host_feed
        split = self.dataset.train
        return feed(self.engine, self.train_step, split, self.config, start, self.steps)

    def _epoch(self, step: int) -> float:
        return step * self.config.batch_size / len(self.dataset.train)

    def _evaluates(self, step: int) -> bool:
        """Whether `step` is the last, or ends an epoch that is evaluated."""
        return step == self.steps or ends_epochs(
            step,
            batch_size=self.config.batch_size,
            examples=len(self.dataset.train) * self.config.eval_every_epochs,
        )

    def _record(
        self, step: int, split: str, values: dict[str, float], speed: float
    ) -> dict[str, Any]:
        rate = float(self.schedule(step - 1))
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the {split} loss is {values['loss']} at step {step}, learning rate {rate:.3g}:"
                " try a lower config.learning_rate or a config.clip_norm"
            )
        return {
            "step": step,
            "epoch": round(self._epoch(step), 4),
            "split": split,
            "loss": values["loss"],
            "accuracy": values["accuracy"],
            "learning_rate": rate,
            "examples_per_second": round(speed, 1),
            **({"weights": "ema"} if split == "test" and self.config.ema_decay else {}),
        }
