"""Builds the parts of a training step that a config describes, and the step itself."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from resflax.data import Split, normalize
from resflax.data.order import number_of_steps
from resflax.nn import ResNet
from resflax.nn.drop import block_rates
from resflax.train.averaging import EMA
from resflax.train.choice import Choice
from resflax.train.config import build_augment, build_mix, build_splits
from resflax.train.distill import Distillation
from resflax.train.ensemble import (
    Hyperparameters,
    differing_values,
    hyperparameters,
    is_ensemble,
    member_config,
    shared_config,
)
from resflax.train.finetune import build_update_scales, freeze_patterns
from resflax.train.image_sizes import build_phases
from resflax.train.learning_rate import batch_size_factor, by_examples
from resflax.train.losses import build_loss
from resflax.train.member_step import freeze_diverged, make_member_step
from resflax.train.optim import make_optimizer
from resflax.train.schedules import make_schedule
from resflax.train.step import TrainStep, make_train_step

Normalizer = Callable[[jax.Array], jax.Array]


def total_steps(config: ConfigDict, examples: int) -> int:
    """Returns the number of steps that use every example `config.epochs` times, rounded up.

    It is at most `config.max_steps`, if that is not 0.
    """
    steps = build_phases(config, examples).steps
    return min(steps, config.max_steps or steps)


def warmup_steps(config: ConfigDict, examples: int) -> int:
    """Returns the number of steps of a config's warm-up, for a split of `examples` examples."""
    return round(config.warmup_epochs * examples / config.batch_size)


def build_schedule(
    config: ConfigDict,
    examples: int,
    peak: float | Choice | None = None,
    reductions: int | Int[Array, ""] = 0,
) -> optax.Schedule:
    """Builds the learning-rate schedule of a config for a split of `examples` examples.

    It is a function of the share of the run's examples, also where the batch size changes, and with
    `config.learning_rate_scaling` proportional to the factor of each batch size.

    Args:
      config: see `default_config`.
      examples: size of the training split.
      peak: replaces `config.learning_rate`, before it is scaled by the batch size.
      reductions: number of reductions of `schedule=plateau` so far.
    """
    if isinstance(peak, Choice):
        return lambda step: peak.map(
            lambda value: build_schedule(config, examples, value, reductions)(step)
        )
    curve = make_schedule(
        config.schedule,
        peak=(config.learning_rate if peak is None else peak) * batch_size_factor(config),
        minimum=config.min_learning_rate,
        steps=number_of_steps(config.epochs, examples, config.batch_size),
        warmup_steps=warmup_steps(config, examples),
        warmup_start=config.warmup_learning_rate,
        boundaries=[round(e * examples / config.batch_size) for e in config.decay_epochs],
        decay_rate=config.decay_rate,
        power=config.polynomial_power,
        cycles=config.schedule_cycles,
        reductions=reductions,
    )
    return by_examples(curve, build_phases(config, examples), config)


def build_schedules(
    config: ConfigDict, examples: int, reductions: Sequence[int] = ()
) -> tuple[optax.Schedule, ...]:
    """Builds the learning-rate schedule of each member; one for a single network.

    Args:
      config: see `default_config`.
      examples: size of the training split.
      reductions: of each member, see `build_schedule`; () for none.
    """
    several = is_ensemble(config)
    members = range(config.ensemble.size if several else 1)
    return tuple(
        build_schedule(
            member_config(config, k) if several else config,
            examples,
            reductions=reductions[k] if reductions else 0,
        )
        for k in members
    )


def build_optimizer(
    config: ConfigDict,
    schedule: optax.Schedule,
    model: nn.Module | None = None,
    weight_decay: float | Choice | None = None,
) -> optax.GradientTransformation:
    """Builds the optimizer of a config.

    Args:
      config: see `default_config`.
      schedule: of the learning rate.
      model: needed for learning rates by layer.
      weight_decay: replaces `config.weight_decay`.
    """
    weight_decay = config.weight_decay if weight_decay is None else weight_decay
    return make_optimizer(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=_scalar(weight_decay),
        weight_decay_factors=config.weight_decay_factors,
        mask=config.decay_mask,
        trust_coefficient=config.trust_coefficient,
        grad_clip=config.grad_clip,
        grad_clip_mode=config.grad_clip_mode,
        betas=config.betas,
        eps=config.eps,
        after=build_update_scales(config, model),
    )


def build_normalizer(split: Split) -> Normalizer:
    """Builds the function that normalizes stored images by the split's mean and std."""
    mean, std = split.mean_std()
    return partial(normalize, mean=mean, std=std)


def build_train_step(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    normalizer: Normalizer,
    *,
    axis_name: str | None = None,
    values: Hyperparameters | None = None,
    examples: int | None = None,
    distillation: Distillation | None = None,
) -> TrainStep:
    """Builds the pure training step of a config.

    Args:
      config: see `default_config`.
      model: the network.
      optimizer: of `build_optimizer`.
      normalizer: of `build_normalizer`.
      axis_name: the mapped axis over which the batch is split, if any.
      values: replace those of the config, except those that are in the optimizer.
      examples: size of the training split, which says when `data.mixup_off_epoch` begins.
      distillation: what the step distils, if anything.
    """
    values = values or hyperparameters(config)
    num_classes = model.spec.num_classes if isinstance(model, ResNet) else None
    return make_train_step(
        model,
        optimizer,
        augment=build_splits(config) or build_augment(config),
        mix=build_mix(config, _scalar(values.mixup)),
        mix_steps=_mix_steps(config, examples),
        num_classes=num_classes,
        normalize=normalizer,
        loss_fn=build_loss(config),
        label_smoothing=values.label_smoothing,
        distillation=distillation,
        jsd_weight=config.jsd_weight,
        drop_path_rates=_drop_path_rates(model, values.drop_path),
        grad_accum_steps=config.grad_accum_steps,
        sam_rho=config.sam_rho,
        ema_decay=EMA(
            config.ema_decay, config.ema_every_steps, config.ema_start_step, config.ema_warmup
        ),
        on_nonfinite=config.on_nonfinite,
        freeze=freeze_patterns(config, model),
        axis_name=axis_name,
    )


def _mix_steps(config: ConfigDict, examples: int | None) -> int | None:
    """Returns the number of steps before `data.mixup_off_epoch`; None if there is no such epoch."""
    if not config.data.mixup_off_epoch or examples is None:
        return None
    return build_phases(config, examples).steps_of_epochs(config.data.mixup_off_epoch, examples)


def _scalar(value: float | Choice) -> Any:
    """Returns a number, or the traced scalar of a `Choice`."""
    return value.value if isinstance(value, Choice) else value


def _drop_path_rates(model: nn.Module, rate: float | Choice | None) -> Any:
    """Returns the rates of all blocks if they differ by member; None for those of the spec."""
    if not isinstance(rate, Choice):
        return None
    blocks = sum(model.spec.depths)
    return rate.map(lambda value: jnp.asarray(block_rates(value, blocks), jnp.float32))


def build_run_step(
    config: ConfigDict,
    model: nn.Module,
    normalizer: Normalizer,
    examples: int,
    *,
    axis_name: str | None = None,
    distillation: Distillation | None = None,
) -> TrainStep:
    """Builds the pure training step of a run: of its network, or of one member of its ensemble.

    What differs between members comes from the state, and so does the learning rate of
    `schedule=plateau`; see `member_step`.
    """
    shared = shared_config(config)
    if is_ensemble(config):
        shared.on_nonfinite = "stop"  # reports only: `freeze_diverged` discards the update

    def make_step(values: Hyperparameters) -> TrainStep:
        schedule = build_schedule(shared, examples, values.learning_rate, values.reductions)
        return build_train_step(
            shared,
            model,
            build_optimizer(shared, schedule, model, values.weight_decay),
            normalizer,
            axis_name=axis_name,
            values=values,
            examples=examples,
            distillation=distillation,
        )

    values = hyperparameters(shared)
    if is_ensemble(config):
        step = make_member_step(make_step, values, differing_values(config))
        return freeze_diverged(step, config)
    follows = config.schedule == "plateau"
    return make_member_step(make_step, values, {}) if follows else make_step(values)
