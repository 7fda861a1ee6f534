"""What a config freezes, and which statistics its batch norms use in training."""

import dataclasses
from functools import partial

import flax.linen as nn
import optax
from ml_collections import ConfigDict

from resflax.errors import UserError, quantity
from resflax.nn import BatchNormMode, ResNet
from resflax.nn.batch_norm import batch_norm_mode
from resflax.nn.patterns import matches_all, parse_patterns
from resflax.train.ensemble import is_ensemble
from resflax.train.freeze import (
    batch_norms,
    check_batch_norm_field,
    frozen_batch_norms,
    moving_statistics,
    split_params,
)
from resflax.train.layer_decay import HEAD, layer_scales
from resflax.train.learning_rate import check_factors, pattern_factors, scale_updates
from resflax.train.weight_decay import check_decay_factors, decay_mask
from resflax.train.whitening import STEM
from resflax.weights.shapes import module_shapes

HEAD_PARAMS = (f"{HEAD}/kernel", f"{HEAD}/bias")


def freeze_patterns(config: ConfigDict, model: nn.Module) -> tuple[str, ...]:
    """Returns the patterns of the parameters that a config freezes.

    Args:
      config: of the run.
      model: the result of `build_batch_norm`.
    """
    patterns = parse_patterns(config.freeze)
    patterns += (f"{STEM}/kernel",) if config.whiten_stem else ()
    return patterns + (batch_norm_mode(model).frozen if config.freeze_batch_norm else ())


def build_batch_norm(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...], devices: int
) -> nn.Module:
    """Returns the model with the batch norms of a config.

    Args:
      config: of the run.
      model: a linen module; it needs a field `batch_norm`, as `ResNet` has, if the config freezes
        batch norms or chooses their statistics.
      image_shape: shape of one example.
      devices: number of devices that share a batch.

    Raises:
      UserError: if the model has no such field or no batch norm, if a pattern of `config.freeze`
        matches nothing, or if the groups of ghost batch norm do not divide the batch.
    """
    mode = BatchNormMode(config.batch_norm, config.ghost_batch_size)
    patterns = parse_patterns(config.freeze)
    if not (patterns or config.freeze_batch_norm or mode.name != "global"):
        return model
    shapes = module_shapes(model, image_shape)
    norms = batch_norms(shapes.get("batch_stats", {}))
    if not norms and (config.freeze_batch_norm or mode.name != "global"):
        key = "freeze_batch_norm" if config.freeze_batch_norm else "batch_norm"
        raise UserError(f"config.{key} is {config[key]!r}, but the model has no batch norm")
    frozen = norms if config.freeze_batch_norm else frozen_batch_norms(shapes, patterns)
    mode = _fit_to_devices(config, dataclasses.replace(mode, frozen=frozen), devices)
    if mode.name == "global" and not frozen:
        return model
    user = "frozen batch norms need" if frozen else f"batch_norm={mode.name!r} needs"
    check_batch_norm_field(model, user, frozen if mode.name == "global" else norms)
    return model.clone(batch_norm=mode)


def describe_statistics(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...]
) -> tuple[str, ...]:
    """Returns a line on batch statistics that change although the kernels before them are frozen.

    Args:
      config: of the run.
      model: the result of `build_batch_norm`.
      image_shape: shape of one example.
    """
    patterns = parse_patterns(config.freeze)
    if not patterns:
        return ()
    shapes = module_shapes(model, image_shape)
    norms = moving_statistics(shapes, patterns, batch_norm_mode(model))
    if not norms:
        return ()
    return (
        f"freeze: the statistics of {quantity(len(norms), 'batch norm')} in frozen blocks, such as"
        f" {norms[0]}, still change: freeze scales and biases too, or use"
        " --config.batch_norm=frozen",
    )


def _fit_to_devices(config: ConfigDict, mode: BatchNormMode, devices: int) -> BatchNormMode:
    """Checks the groups of ghost batch norm, and finds those of "per_device" on a mesh.

    Raises:
      UserError: if the groups do not divide the examples of a device.
    """
    images = config.batch_size * config.data.aug_splits
    examples = images // (devices * config.grad_accum_steps)
    if mode.name == "ghost" and examples % mode.ghost_batch_size:
        raise UserError(
            f"config.ghost_batch_size is {mode.ghost_batch_size}: expected a divisor of {examples},"
            f" the images per device and micro-batch ({images} images in a batch /"
            f" ({quantity(devices, 'device')} * grad_accum_steps"
            f" {config.grad_accum_steps}))"
        )
    under_jit = config.parallel == "mesh" and not is_ensemble(config)  # sees the global batch
    if mode.name == "per_device" and under_jit:
        return dataclasses.replace(mode, name="ghost", ghost_batch_size=examples)
    return mode


def build_update_scales(
    config: ConfigDict, model: nn.Module | None
) -> list[optax.GradientTransformation]:
    """Builds what scales the updates of a config's optimizer: learning rates by layer and pattern.

    Raises:
      UserError: if the config has learning rates by layer and the model is not a `ResNet`, or one
        for a head that it freezes.
    """
    head_rate, scales = config.head_learning_rate, []
    if head_rate or config.layer_decay != 1:
        if not isinstance(model, ResNet):
            raise UserError(
                "config.layer_decay and config.head_learning_rate need the layers of a resflax"
                " ResNet: leave them out with another model"
            )
        decay = partial(layer_scales, depths=model.spec.depths, layer_decay=config.layer_decay)
        scales += [scale_updates(decay)] if config.layer_decay != 1 else []
    if head_rate and matches_all(HEAD_PARAMS, parse_patterns(config.freeze)):
        raise UserError(
            f"config.head_learning_rate is {head_rate}, but config.freeze includes the head:"
            " expected 0"
        )
    head = [(HEAD, head_rate / config.learning_rate)] if head_rate else []
    if factors := (*head, *config.learning_rate_factors):
        scales.append(scale_updates(partial(pattern_factors, factors=factors)))
    return scales


def check_factor_patterns(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Raises `UserError` if a pattern of a config matches no trained parameter that it applies to.

    Args:
      config: of the run.
      model: the result of `build_batch_norm`.
      image_shape: shape of one example.
    """
    rates, decays = config.learning_rate_factors, config.weight_decay_factors
    if rates or decays:
        params = module_shapes(model, image_shape)["params"]
        trainable, _ = split_params(params, freeze_patterns(config, model))
        check_factors(trainable, rates, "config.learning_rate_factors", "is trained")
        check_decay_factors(trainable, decay_mask(config.decay_mask), decays)
