"""Builds the run that a config describes: dataset, model, weights, engine and steps."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from resflax.data import Dataset, StreamingSplit
from resflax.distributed import Engine, make_engine
from resflax.distributed.ensemble_engine import EnsembleEngine
from resflax.errors import UserError
from resflax.kernels.members import choose_method
from resflax.nn import ResNet
from resflax.train.builders import (
    Normalizer,
    build_normalizer,
    build_optimizer,
    build_run_step,
    build_schedules,
    total_steps,
)
from resflax.train.config import build_model
from resflax.train.config_rules import check_averaging, check_config
from resflax.train.dataset import build_dataset, normalize_dataset
from resflax.train.ensemble import is_ensemble, shared_config
from resflax.train.eval_step import EvalStep, make_eval_step, make_predict_step
from resflax.train.finetune import (
    build_batch_norm,
    check_factor_patterns,
    describe_statistics,
)
from resflax.train.image_sizes import build_phases, describe_phases
from resflax.train.learning_rate import describe_learning_rate
from resflax.train.model_record import model_record
from resflax.train.plateau import describe_plateau
from resflax.train.precise_bn import make_stats_step
from resflax.train.pretrained import describe_input, fit_to_dataset, read_pretrained
from resflax.train.run import Run, model_errors
from resflax.train.run_checks import check_dataset, check_devices, check_images
from resflax.train.teacher import read_teacher
from resflax.train.teacher_engine import TeacherEnsembleEngine
from resflax.train.whitening import stem_kernel
from resflax.weights import PretrainedConfig
from resflax.weights.bridge import stack_variables
from resflax.weights.readers import Weights
from resflax.weights.shapes import module_shapes
from resflax.zoo import create_model
from resflax.zoo.registry import split_tag

OpenDataset = Callable[[ConfigDict, PretrainedConfig | None], Dataset]


def build(
    config: ConfigDict,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    pretrained: PretrainedConfig | None = None,
    devices: Sequence[Any] | None = None,
    open_dataset: OpenDataset = build_dataset,
) -> Run:
    """Builds a run from its config.

    Args:
      config: see `default_config`.
      model: a linen module to train instead of the config's model: `config.model`, `config.spec`,
        and its dtype, scan and remat are not used.
      dataset: a dataset to train on instead of the config's dataset.
      pretrained: config of the weights `config.pretrained`, as a checkpoint of the run has it:
        the weights themselves are then read only if the run has to start again.
      devices: by default, all devices of all processes.
      open_dataset: opens the config's dataset.

    Raises:
      UserError: if the config is invalid, or does not fit the dataset, the model or the devices.
    """
    check_config(config)
    _check_arguments(config, model, dataset)
    given = config.copy_and_resolve_references()  # `ConfigDict(config)` would share the groups
    config = shared_config(given)
    engine = build_engine(config, devices)
    check_devices(config, engine.batch_devices)
    weights = None
    if config.pretrained and pretrained is None:
        weights = read_pretrained(config)
        pretrained = weights.config
    dataset = dataset or open_dataset(config, pretrained)
    check_dataset(config, dataset)
    model = model or _build_model_for(config, dataset, pretrained)
    fitted = weights and fit_to_dataset(weights, config, dataset)
    dataset = normalize_dataset(dataset, config, pretrained)
    if isinstance(engine, EnsembleEngine) and config.ensemble.method == "auto":
        engine = engine.with_method(_choose_method(config, engine, dataset))
    with model_errors(config, dataset):
        model = build_batch_norm(config, model, dataset.image_shape, engine.batch_devices)
        check_factor_patterns(config, model, dataset.image_shape)
        whitening = None
        if config.whiten_stem:
            whitening = stem_kernel(dataset, module_shapes(model, dataset.image_shape))
    teacher = read_teacher(config, dataset)
    distillation = teacher.distillation(config) if teacher else None
    if teacher and distillation:
        with model_errors(config, dataset):
            teacher.check_features(distillation, model, dataset.image_shape)
    examples, normalizer = len(dataset.train), build_normalizer(dataset.train)
    steps, schedules = total_steps(config, examples), build_schedules(given, examples)
    optimizer = build_optimizer(config, schedules[0], model)  # the values are those of one member
    axis_name = engine.axis_name
    train_step = build_run_step(
        given,
        model,
        normalizer,
        examples,
        axis_name=axis_name,
        distillation=distillation,
    )

    def read_variables(seed: int) -> Any:
        nonlocal weights
        weights = weights or read_pretrained(config)
        start = fit_to_dataset(weights, config, dataset, seed)
        return stack_variables(start.variables) if model.scan else start.variables

    run = Run(
        config=given,
        dataset=dataset,
        model=model,
        pretrained=pretrained,
        read_variables=read_variables,
        notes=(
            *_describe_start(config, fitted, model, dataset),
            *describe_statistics(config, model, dataset.image_shape),
            *describe_learning_rate(given),
            *describe_phases(build_phases(config, examples), steps, dataset.train),
            *describe_plateau(config, dataset),
            *([f"teacher: {teacher.source}"] if teacher else []),
            *(model.spec.describe_saved() if isinstance(model, ResNet) else ()),
        ),
        steps=steps,
        schedules=schedules,
        optimizer=optimizer,
        engine=engine,
        train_step=train_step,
        eval_step=make_eval_step(
            model, normalize=normalizer, tta=config.eval_tta, axis_name=axis_name
        ),
        predict_step=_build_predict_step(config, model, normalizer, engine),
        stats_step=make_stats_step(model, normalize=normalizer, axis_name=axis_name),
        teacher=teacher,
        stem_kernel=whitening,
    )
    run.check_model()
    return run


def _check_arguments(config: ConfigDict, model: nn.Module | None, dataset: Dataset | None) -> None:
    """Raises `UserError` if the config has what the given model or dataset replaces."""
    if model is not None and config.pretrained:
        raise UserError(
            f"config.pretrained is {config.pretrained!r}, but a model is given: expected ''"
        )
    if dataset is not None and config.eval_sets:
        raise UserError(
            f"config.eval_sets is {config.eval_sets!r}, but a dataset is given: expected None, and"
            " the sets in its field eval_sets"
        )
    if model is not None and config.ensemble.drop_path:
        raise UserError(
            f"config.ensemble.drop_path is {config.ensemble.drop_path!r}, but a model is given:"
            " expected ()"
        )


def _build_predict_step(
    config: ConfigDict, model: nn.Module, normalizer: Normalizer, engine: Engine
) -> EvalStep:
    """Builds the step that predicts with each network of an ensemble, or each member of one."""
    make = partial(make_predict_step, model, normalize=normalizer, tta=config.eval_tta)
    if isinstance(engine, EnsembleEngine):
        return make()
    members = isinstance(model, ResNet) and model.spec.members > 1
    return make(members=members, axis_name=engine.axis_name)


def build_engine(config: ConfigDict, devices: Sequence[Any] | None = None) -> Engine:
    """Builds the engine of a config, by default on all devices of all processes."""
    ensemble = config.ensemble
    if is_ensemble(config):
        engine_class = TeacherEnsembleEngine if config.distill.teacher else EnsembleEngine
        return engine_class(
            devices, ensemble.size, member_devices=ensemble.member_devices, method=ensemble.method
        )
    return make_engine(config.parallel, devices, fsdp=config.mesh.fsdp)


def _choose_method(config: ConfigDict, engine: EnsembleEngine, dataset: Dataset) -> str:
    """Returns how a device runs its members, for a member's batch of the most pixels on it."""
    area = math.prod(dataset.image_shape[:-1])
    phases = build_phases(config, len(dataset.train))
    pixels = max(phase.batch_size * (phase.image_size**2 or area) for phase in phases)
    pixels = pixels * config.data.aug_splits // engine.batch_devices // config.grad_accum_steps
    return choose_method(engine.devices[0].platform, pixels, dtype=config.dtype)


def _build_model_for(
    config: ConfigDict, dataset: Dataset, pretrained: PretrainedConfig | None
) -> ResNet:
    """Builds the model, pretrained or by its name, for a dataset's images and classes."""
    if pretrained:
        spec = pretrained.spec.override(num_classes=dataset.num_classes)
    else:
        spec = build_model(config, dataset.num_classes).spec
    check_averaging(config, spec)
    if config.data.aug_splits > 1 and spec.ensemble != "none":
        raise UserError(
            f"config.data.aug_splits is {config.data.aug_splits}, but the network is an ensemble,"
            f" {spec.ensemble}: leave one out"
        )
    check_images(config, dataset, spec)
    return create_model(spec, dtype=config.dtype, scan=config.scan, remat=config.remat)


def _describe_start(
    config: ConfigDict, weights: Weights | None, model: nn.Module, dataset: Dataset
) -> tuple[str, ...]:
    """Returns lines on the weights that a run starts from, and on its preprocessing."""
    if weights is None:
        tag = "" if config.pretrained else split_tag(config.model)[1]
        line = f"initial parameters are random: those of .{tag} are --config.pretrained="
        return (f"{line}{config.model}",) if tag else ()
    record = model_record(model, dataset)
    assert record, "pretrained weights are those of a ResNet"
    cropped = isinstance(dataset.test, StreamingSplit)
    return weights.source, describe_input(record.preprocess, cropped=cropped)
