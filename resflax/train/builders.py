"""Builds everything that a config describes: dataset, model, optimizer, engine, steps."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from resflax.data import Dataset, Split, load_dataset, normalize
from resflax.distributed import Engine, make_engine
from resflax.distributed.engines import check_batch_size
from resflax.errors import UserError
from resflax.nn import ResNet, stack_params
from resflax.train.accumulate import check_micro_batches
from resflax.train.config import build_augment, build_mix, build_model, check_config
from resflax.train.finetune import build_batch_norm, build_layer_scales, freeze_patterns
from resflax.train.optim import make_optimizer
from resflax.train.precise_bn import StatsStep, make_stats_step
from resflax.train.schedules import make_schedule
from resflax.train.state import TrainState, create_state
from resflax.train.step import EvalStep, TrainStep, make_eval_step, make_train_step
from resflax.weights import read_weights, replace_head

Normalizer = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Run:
    """Everything that a `Trainer` needs, built from a config.

    Attributes:
      config: a copy, with the normalization of the pretrained weights.
      dataset: training and test split.
      model: the network, without `axis_name`.
      initial_variables: pretrained weights; None to initialize from the seed.
      steps: number of training steps.
      schedule: learning rate by step.
      optimizer: an optax transformation.
      engine: devices and how they share a batch.
      train_step: pure `(state, batch) -> (state, metrics)`.
      eval_step: pure `(state, batch) -> metrics`.
      stats_step: pure `(state, batch) -> batch statistics`.
    """

    config: ConfigDict
    dataset: Dataset
    model: nn.Module
    initial_variables: Any
    steps: int
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    engine: Engine
    train_step: TrainStep
    eval_step: EvalStep
    stats_step: StatsStep

    def init(self) -> TrainState:
        """Creates the state before the first step, not yet on the engine's devices.

        On a CPU the program is compiled with fewer optimizations, which gives the same bits in half
        the time: it runs once.
        """
        if self.initial_variables is not None or jax.default_backend() != "cpu":
            return self._create()
        lowered = jax.jit(self._create).lower()
        return lowered.compile({"xla_backend_optimization_level": "1"})()

    def _create(self) -> TrainState:
        shape = self.dataset.image_shape
        return build_state(self.config, self.model, self.optimizer, shape, self.initial_variables)


def build(
    config: ConfigDict, *, model: nn.Module | None = None, dataset: Dataset | None = None
) -> Run:
    """Builds a run from its config.

    Args:
      config: see `default_config`.
      model: a linen module to train instead of the config's model.
      dataset: a dataset to train on instead of the config's dataset.

    Raises:
      UserError: if the config is invalid, or does not fit the dataset, the model or the devices.
    """
    check_config(config)
    if model is not None and config.pretrained:
        raise UserError(
            f"config.pretrained is {config.pretrained!r}, but a model is given: expected ''"
        )
    config = config.copy_and_resolve_references()  # `ConfigDict(config)` would share the groups
    dataset = dataset or build_dataset(config)
    check_dataset(config, dataset)
    engine = make_engine(config.parallel, fsdp=config.mesh.fsdp)
    check_devices(config, len(engine.devices))
    variables = None
    if model is None:
        model, variables = _build_model_for(config, dataset)
    if config.pretrained:
        dataset = dataset.with_normalization(config.data.mean, config.data.std)
    dataset = dataset.with_normalization(*dataset.train.mean_std())  # measured once
    with _model_errors(config, dataset):
        model = build_batch_norm(config, model, dataset.image_shape, len(engine.devices))
    schedule = build_schedule(config, len(dataset.train))
    optimizer = build_optimizer(config, schedule, model)
    normalizer = build_normalizer(dataset.train)
    train_step, eval_step = build_steps(
        config, model, optimizer, normalizer, axis_name=engine.axis_name
    )
    run = Run(
        config=config,
        dataset=dataset,
        model=model,
        initial_variables=variables,
        steps=total_steps(config, len(dataset.train)),
        schedule=schedule,
        optimizer=optimizer,
        engine=engine,
        train_step=train_step,
        eval_step=eval_step,
        stats_step=make_stats_step(model, normalize=normalizer, axis_name=engine.axis_name),
    )
    _check_model(run)
    return run


def build_dataset(config: ConfigDict) -> Dataset:
    """Opens the dataset of a config, with its normalization."""
    data = config.data
    dataset = load_dataset(
        config.dataset,
        data.data_dir,
        image_size=data.image_size,
        channels=data.channels,
        on_bad_example=data.on_bad_example,
        seed=config.seed,
    )
    return dataset.with_normalization(tuple(data.mean), tuple(data.std))


def _build_model_for(config: ConfigDict, dataset: Dataset) -> tuple[ResNet, Any]:
    """Builds the model for a dataset's classes, and its pretrained variables, if any.

    Sets the config's mean and std to those of the pretrained weights, unless it has its own.
    """
    model = build_model(config, dataset.num_classes)
    height, width, channels = dataset.image_shape
    minimum = model.spec.min_image_size
    if min(height, width) < minimum:
        raise UserError(
            f"the images of {config.dataset} are {height}x{width}, too small for {config.model}"
            f" with the {model.spec.stem} stem, which needs {minimum}x{minimum}:"
            " try --config.spec.stem=cifar"
        )
    if not config.pretrained:
        return model, None
    pretrained, variables, *_ = read_weights(config.pretrained, model.spec)
    if pretrained.channels != channels:
        raise UserError(
            f"{config.pretrained} takes images with {pretrained.channels} channels:"
            f" {dataset.name} has {channels}"
        )
    for key in ("mean", "std"):
        if not config.data[key]:
            config.data[key] = getattr(pretrained.preprocess, key)
    if config.reset_head or pretrained.spec.num_classes != model.spec.num_classes:
        variables = replace_head(variables, model.spec.num_classes, seed=config.seed)
    return model, stack_params(variables) if model.scan else variables


def total_steps(config: ConfigDict, examples: int) -> int:
    """Returns the number of steps that use every example `config.epochs` times, rounded up."""
    return math.ceil(config.epochs * examples / config.batch_size)


def build_schedule(config: ConfigDict, examples: int) -> optax.Schedule:
    """Builds the learning-rate schedule of a config for a split of `examples` examples."""

    def steps(epochs: float) -> int:
        return round(epochs * examples / config.batch_size)

    return make_schedule(
        config.schedule,
        peak=config.learning_rate,
        steps=total_steps(config, examples),
        warmup_steps=steps(config.warmup_epochs),
        boundaries=[steps(epoch) for epoch in config.decay_epochs],
        decay_rate=config.decay_rate,
        power=config.polynomial_power,
    )


def build_optimizer(
    config: ConfigDict, schedule: optax.Schedule, model: nn.Module | None = None
) -> optax.GradientTransformation:
    """Builds the optimizer of a config; `model` is needed for learning rates by layer."""
    optimizer = make_optimizer(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        mask=config.decay_mask,
        trust_coefficient=config.trust_coefficient,
        grad_clip_norm=config.grad_clip_norm,
    )
    scales = build_layer_scales(config, model)
    return optax.chain(optimizer, *scales) if scales else optimizer


def build_state(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    variables: Any = None,
) -> TrainState:
    """Builds the state before the first step, from given variables or the config's seed."""
    return create_state(
        model,
        optimizer,
        config.seed,
        image_shape,
        variables,
        ema=config.ema_decay > 0,
        freeze=freeze_patterns(config, model),
    )


def build_normalizer(split: Split) -> Normalizer:
    """Builds the function that normalizes stored images by the split's mean and std."""
    mean, std = split.mean_std()
    return partial(normalize, mean=mean, std=std)


def build_steps(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    normalizer: Normalizer,
    *,
    axis_name: str | None = None,
) -> tuple[TrainStep, EvalStep]:
    """Builds the pure training and evaluation steps of a config."""
    num_classes = model.spec.num_classes if isinstance(model, ResNet) else None
    train_step = make_train_step(
        model,
        optimizer,
        augment=build_augment(config),
        mix=build_mix(config),
        num_classes=num_classes,
        normalize=normalizer,
        label_smoothing=config.label_smoothing,
        grad_accum_steps=config.grad_accum_steps,
        ema_decay=config.ema_decay,
        on_nonfinite=config.on_nonfinite,
        freeze=freeze_patterns(config, model),
        axis_name=axis_name,
    )
    return train_step, make_eval_step(model, normalize=normalizer, axis_name=axis_name)


def check_dataset(config: ConfigDict, dataset: Dataset) -> None:
    """Raises `UserError` if the batch size or the crop does not fit the dataset."""
    examples, batch_size = len(dataset.train), config.batch_size
    if batch_size > examples:
        raise UserError(
            f"batch_size {batch_size} is larger than the train split of {dataset.name!r},"
            f" {examples} examples: use {examples} or less"
        )
    side, padding = min(dataset.image_shape[:2]), config.data.pad_crop
    if padding > side:
        raise UserError(
            f"config.data.pad_crop is {padding}: expected at most the image's side, {side}"
        )
    if total_steps(config, examples) >= 2**31:
        raise UserError(
            f"{total_steps(config, examples)} steps are more than 2**31 - 1: lower config.epochs"
        )


def check_devices(config: ConfigDict, devices: int) -> None:
    """Raises `UserError` if the batch cannot be split over the devices."""
    check_batch_size(config.batch_size, devices)
    check_micro_batches(config.batch_size, devices, config.grad_accum_steps)
    if (config.data.mixup or config.data.cutmix) and config.batch_size % (2 * devices):
        raise UserError(
            f"mixup and CutMix need pairs of examples: batch_size {config.batch_size} is not a"
            f" multiple of twice the {devices} devices"
        )


def _check_model(run: Run) -> None:
    """Raises `UserError` if the model cannot take the images; computes nothing.

    JAX caches the trace for the initialization.
    """
    with _model_errors(run.config, run.dataset):
        jax.eval_shape(run._create)


@contextlib.contextmanager
def _model_errors(config: ConfigDict, dataset: Dataset) -> Iterator[None]:
    """Raises `UserError` where a model cannot take the dataset's images."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError) as e:
        shape, reason = dataset.image_shape, str(e).splitlines()[0]
        raise UserError(f"{config.model} cannot be built for images of {shape}: {reason}") from e
