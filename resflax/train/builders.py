"""The parts of a run that a config means: dataset, schedule, optimiser, state, steps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from resflax.data import Augment, Dataset, Split, load_dataset, make_augment, make_mix, normalize
from resflax.nn import ResNet
from resflax.train.optim import make_optimizer
from resflax.train.schedules import make_schedule
from resflax.train.state import TrainState, create_state
from resflax.train.step import EvalStep, TrainStep, make_eval_step, make_train_step


def total_steps(config: ConfigDict, examples: int) -> int:
    """The steps that use every example `config.epochs` times; the last batch is a whole one."""
    return math.ceil(config.epochs * examples / config.batch_size)


def build_dataset(config: ConfigDict) -> Dataset:
    """The dataset that a config means."""
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


def build_schedule(config: ConfigDict, examples: int) -> optax.Schedule:
    """The learning rate by step that a config means for a split of that many examples."""

    def steps(epochs: float) -> int:
        return round(epochs * examples / config.batch_size)

    return make_schedule(
        config.schedule,
        peak=config.learning_rate,
        steps=total_steps(config, examples),
        warmup_steps=steps(config.warmup_epochs),
        boundaries=[steps(epoch) for epoch in config.decay_epochs],
        factor=config.decay_rate,
        power=config.polynomial_power,
    )


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser that a config means."""
    return make_optimizer(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        mask=config.decay_mask,
        trust_coefficient=config.trust_coefficient,
        grad_clip_norm=config.grad_clip_norm,
    )


def build_state(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    start: Any = None,
) -> TrainState:
    """The state before the first step that a config means, from given variables or its seed."""
    ema = config.ema_decay > 0
    return create_state(model, optimizer, config.seed, image_shape, start, ema=ema)


def build_normalizer(examples: Split) -> Callable[[jax.Array], jax.Array]:
    """From stored images to those that a network sees, by the moments of `examples`."""
    mean, std = examples.mean_std()
    return partial(normalize, mean=mean, std=std)


def build_augment(config: ConfigDict) -> Augment | None:
    """What a config does to each image of a batch; None for nothing."""
    data = config.data
    flip = "alternating" if data.alternating_flip else "random" if data.flip else "none"
    return make_augment(
        pad_crop=data.pad_crop,
        inception_crop=data.inception_crop,
        flip=flip,
        rand_augment=data.rand_augment,
        color_jitter=data.color_jitter,
        random_erasing=data.random_erasing,
        cutout=data.cutout,
    )


def build_steps(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    to_input: Callable[[jax.Array], jax.Array],
    *,
    axis_name: str | None = None,
) -> tuple[TrainStep, EvalStep]:
    """The pure steps that a config means; `to_input` is what `build_normalizer` gave."""
    num_classes = model.spec.num_classes if isinstance(model, ResNet) else None
    train_step = make_train_step(
        model,
        optimizer,
        augment=build_augment(config),
        mix=make_mix(mixup=config.data.mixup, cutmix=config.data.cutmix),
        num_classes=num_classes,
        normalize=to_input,
        label_smoothing=config.label_smoothing,
        grad_accum_steps=config.grad_accum_steps,
        ema_decay=config.ema_decay,
        on_nonfinite=config.on_nonfinite,
        axis_name=axis_name,
    )
    return train_step, make_eval_step(model, normalize=to_input, axis_name=axis_name)
