"""The training loop: batches through the compiled step, records to the run's folder."""

import math
import time
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from resflax.data import Dataset, Examples, eval_batches, make_augment, normalize, train_batches
from resflax.errors import UserError
from resflax.train import checkpoint
from resflax.train.curves import draw_curves
from resflax.train.meter import Meter
from resflax.train.optim import make_optimizer, make_schedule
from resflax.train.parallel import Engine, make_engine
from resflax.train.progress import Progress
from resflax.train.rundir import RunDir, params_sha256
from resflax.train.state import TrainState, create_state
from resflax.train.step import EvalStep, TrainStep, make_eval_step, make_train_step


def total_steps(config: ConfigDict, examples: int) -> int:
    """The steps that use every example `config.epochs` times; the last batch is a whole one."""
    return math.ceil(config.epochs * examples / config.batch_size)


def schedule_from(config: ConfigDict, examples: int) -> optax.Schedule:
    """The learning rate by step that a config means for a split of that many examples."""

    def steps(epochs: float) -> int:
        return round(epochs * examples / config.batch_size)

    return make_schedule(
        config.schedule,
        peak=config.learning_rate,
        steps=total_steps(config, examples),
        warmup_steps=steps(config.warmup_epochs),
        boundaries=[steps(epoch) for epoch in config.step_epochs],
        factor=config.step_factor,
    )


def optimizer_from(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser that a config means."""
    return make_optimizer(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        mask=config.decay_mask,
        clip_norm=config.clip_norm,
    )


def steps_from(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    examples: Examples,
    *,
    axis_name: str | None = None,
) -> tuple[TrainStep, EvalStep]:
    """The pure steps that a config means, on images normalised by its mean and standard deviation.

    Where it has none, by those of `examples`.
    """
    mean, std = examples.moments()
    mean, std = (tuple(config.data.mean) or mean), (tuple(config.data.std) or std)
    to_input = partial(normalize, mean=mean, std=std)
    train_step = make_train_step(
        model,
        optimizer,
        augment=make_augment(padding=config.data.pad_crop, mirror=config.data.flip),
        normalize=to_input,
        label_smoothing=config.label_smoothing,
        axis_name=axis_name,
    )
    return train_step, make_eval_step(model, normalize=to_input, axis_name=axis_name)


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
        self.engine: Engine = make_engine(config.parallel)
        self.engine.check_batch(config.batch_size)
        self.steps = total_steps(config, examples)
        if self.steps >= 2**31:
            raise UserError(f"{self.steps} steps are too many: lower config.epochs")
        self.schedule = schedule_from(config, examples)
        self.optimizer = optimizer_from(config, self.schedule)
        self._check_model()
        train_step, eval_step = steps_from(
            config, model, self.optimizer, dataset.train, axis_name=self.engine.axis_name
        )
        self.train_step = self.engine.compile_train(train_step)
        self.eval_step = self.engine.compile_eval(eval_step)

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
        channels = self.dataset.image_shape[2]
        for key in ("mean", "std"):
            if len(self.config.data[key]) not in (0, channels):
                raise UserError(
                    f"config.data.{key} is {self.config.data[key]}: expected a number for each of"
                    f" the {channels} channels of {self.dataset.name!r}"
                )

    def _check_model(self) -> None:
        """Raises `UserError` if the model cannot take the images; computes nothing.

        The trace is the one that `init` uses later: JAX keeps it.
        """
        try:
            jax.eval_shape(self.init)
        except (ValueError, TypeError, OverflowError) as e:
            shape, reason = self.dataset.image_shape, str(e).splitlines()[0]
            raise UserError(
                f"{self.config.model} cannot be built on images of {shape}: {reason}"
            ) from e

    def init(self) -> TrainState:
        """The state before the first step, not yet on the engine's devices."""
        shape = self.dataset.image_shape
        return create_state(self.model, self.optimizer, self.config.seed, shape, self.start)

    def summary(self) -> str:
        """What will be trained on what, in one line."""
        config, devices = self.config, self.engine.devices
        return (
            f"{config.model} on {self.dataset.name}: {len(self.dataset.train)} examples,"
            f" {config.epochs} epochs, {self.steps} steps of {config.batch_size} on"
            f" {len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}; compiling"
        )

    def evaluate(self, state: TrainState, examples: Examples) -> dict[str, float]:
        """Loss, accuracy and count over every example once; `state` is on the engine's devices."""
        parts: list[Any] = []
        for batch in eval_batches(examples, batch_size=self.config.batch_size):
            parts.append(self.eval_step(state, self.engine.split(batch)))
            keep_two_in_flight(parts)
        sums = self.engine.fetch(parts)
        total = {key: math.fsum(float(part[key]) for part in sums) for key in sums[0]}
        count = total["count"]
        return {"loss": total["loss"] / count, "accuracy": total["correct"] / count, "count": count}

    def fit(self, run: RunDir, progress: Progress) -> dict[str, Any]:
        """Trains to the end; writes records, checkpoint, curves and, last, the results."""
        began = time.monotonic()
        meter = Meter(self.steps)
        state, test = self._train(run, progress, meter)
        progress.close()
        final: TrainState = self.engine.fetch(state)
        checkpoint.save(run.path / "checkpoints", final)
        title = f"{self.config.model} on {self.dataset.name}, test accuracy {test['accuracy']:.4f}"
        draw_curves(run.records(), run.path / "curves.png", title)
        results = {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "test_examples": int(test["count"]),
            "train_examples": len(self.dataset.train),
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
        run.finish(results)
        return results

    def _train(
        self, run: RunDir, progress: Progress, meter: Meter
    ) -> tuple[TrainState, dict[str, float]]:
        """The loop itself; returns the last state, on the devices, and its evaluation."""
        config, test = self.config, {}
        state = self.engine.replicate(self.init())
        batches = train_batches(
            self.dataset.train,
            seed=config.seed,
            batch_size=config.batch_size,
            start=0,
            stop=self.steps,
        )
        window: list[Any] = []
        for step, batch in enumerate(batches, start=1):
            state, metrics = self.train_step(state, self.engine.split(batch))
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
                test = self.evaluate(state, self.dataset.test)
                record = self._record(step, "test", test, test["count"] / meter.pause())
                run.record(record)
                progress.test(record, meter.left(step))
        return state, test

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
        }
