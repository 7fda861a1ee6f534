"""Checks that a config's batches, images and augmentation fit its devices, dataset and network."""

import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.data.augment.pipeline import TRANSFORMS
from resflax.distributed.engines import check_batch_size
from resflax.errors import UserError, quantity
from resflax.nn.resnet import INPUT_SHAPES
from resflax.nn.spec import Spec
from resflax.train.accumulate import check_micro_batches
from resflax.train.builders import total_steps
from resflax.train.image_sizes import batch_size_sources


def check_dataset(config: ConfigDict, dataset: Dataset) -> None:
    """Raises `UserError` if the batch size or the crop does not fit the dataset."""
    examples = len(dataset.train)
    for batch_size, row in batch_size_sources(config):
        if batch_size > examples:
            raise UserError(
                f"{_prefix(row)}batch_size {batch_size} is larger than the train split of"
                f" {dataset.name!r}, {examples} examples: use {examples} or less"
            )
    if dataset.has_arrays:
        check_array_augmentation(config, dataset)
    padding = config.data.pad_crop
    sides = [(min(dataset.image_shape[:-1], default=sys.maxsize), None)]
    sides += [(row[1], row) for row in config.data.size_schedule]
    for side, row in sides:
        if padding > side:
            raise UserError(
                f"{_prefix(row)}config.data.pad_crop is {padding}: expected at most the image's"
                f" side, {side}"
            )
    steps = total_steps(config, examples)
    if config.profile_steps and config.profile_steps[1] > steps:
        raise UserError(
            f"config.profile_steps is {config.profile_steps}: expected steps up to the last one,"
            f" {steps}"
        )
    if steps >= 2**31:
        raise UserError(f"{steps} steps are more than 2**31 - 1: lower config.epochs")


def check_array_augmentation(config: ConfigDict, dataset: Dataset) -> None:
    """Raises `UserError` if a transform of the config is for uint8 images only."""
    keys = [name for name, transform in TRANSFORMS.items() if not transform.any_array]
    keys += ["alternating_flip", "cutmix", "size_schedule"]
    for key in keys:
        if config.data.get(key):
            allowed = [name for name, transform in TRANSFORMS.items() if transform.any_array]
            raise UserError(
                f"config.data.{key} is {config.data[key]!r}, which is for uint8 images, but"
                f" {dataset.name!r} has {dataset.train.images.dtype} arrays of shape"
                f" {dataset.image_shape}: use {', '.join(allowed)} or mixup"
            )
    if config.data.train_crop not in ("auto", "none"):
        raise UserError(
            f"config.data.train_crop is {config.data.train_crop!r}, which is for images, but"
            f" {dataset.name!r} has arrays of shape {dataset.image_shape}: use pad_crop"
        )
    if config.eval_tta != "none":
        raise UserError(
            f"config.eval_tta is {config.eval_tta!r}, which is for images, but {dataset.name!r} has"
            f" arrays of shape {dataset.image_shape}: leave it out"
        )


def check_devices(config: ConfigDict, devices: int) -> None:
    """Raises `UserError` if the batches cannot be split over the devices."""
    for batch_size, row in batch_size_sources(config):
        try:
            _check_batches(config, batch_size, devices)
        except UserError as e:
            raise UserError(f"{_prefix(row)}{e}") from e


def _check_batches(config: ConfigDict, batch_size: int, devices: int) -> None:
    check_batch_size(batch_size, devices)
    check_micro_batches(batch_size, devices, config.grad_accum_steps)
    if (config.data.mixup or config.data.cutmix) and batch_size % (2 * devices):
        raise UserError(
            f"mixup and CutMix need pairs of examples: batch_size {batch_size} is not a"
            f" multiple of twice the {quantity(devices, 'device')}"
        )


def check_images(config: ConfigDict, dataset: Dataset, spec: Spec) -> None:
    """Raises `UserError` if images have another rank than a network's, or are too small for it."""
    name, whose = config.model or config.pretrained, f"the images of {config.dataset} are"
    shapes = {split.image_shape[:-1]: whose for split in dataset.splits.values()}
    for sides in shapes:
        if len(sides) != spec.dimensions:
            raise UserError(
                f"the examples of {config.dataset} have the shape {dataset.image_shape}, with"
                f" {len(sides)} axes before the channels, but {name} has dimensions"
                f" {spec.dimensions}: use --config.spec.dimensions={len(sides)}, or data with"
                f" {INPUT_SHAPES[spec.dimensions]}"
            )
    for row in config.data.size_schedule:
        shapes.setdefault((row[1],) * 2, f"{_prefix(row)}images are")
    for sides, what in shapes.items():
        if min(sides) < spec.min_image_size:
            raise UserError(
                f"{what} {'x'.join(map(str, sides))}, too small for {name} with the {spec.stem}"
                f" stem, which needs {'x'.join([str(spec.min_image_size)] * len(sides))}: try"
                " --config.spec.stem=cifar"
            )


def _prefix(row: Sequence[float] | None) -> str:
    """Returns the start of a message on a row of `data.size_schedule`; "" for none."""
    return "" if row is None else f"row {tuple(row)} of config.data.size_schedule: "
