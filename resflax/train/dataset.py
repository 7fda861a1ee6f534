"""The dataset of a config: image size, evaluation transform, normalization, skipped examples."""

import json
from dataclasses import replace

import numpy as np
from ml_collections import ConfigDict

from resflax.data import Dataset, EvalTransform, StreamingSplit, load_dataset
from resflax.data.crops import TrainCrop
from resflax.data.location import FeatureKeys
from resflax.data.roles import Roles, SplitChoice
from resflax.distributed.processes import all_gather_strings
from resflax.errors import UserError
from resflax.train.config import crop_kind
from resflax.train.eval_sets import open_eval_sets
from resflax.weights import Preprocess, PretrainedConfig
from resflax.weights.adapt import convert_preprocess
from resflax.weights.array_preprocess import ArrayPreprocess

# `config.data.image_size` of the pretrained model's input size.
PRETRAINED_SIZE = -1


def build_dataset(
    config: ConfigDict, pretrained: PretrainedConfig | None = None, roles: Roles | None = None
) -> Dataset:
    """Opens the dataset of a config.

    Args:
      config: see `default_config`.
      pretrained: config of the pretrained weights, whose preprocessing and number of channels apply
        to streamed images unless the config has its own.
      roles: the examples, if they are opened already.

    Raises:
      UserError: if the dataset cannot be opened.
    """
    data, size = config.data, _train_size(config, pretrained)
    channels = data.channels
    if pretrained and size and not channels and pretrained.channels in (1, 3):
        channels = pretrained.channels
    dataset = load_dataset(
        config.dataset,
        data.data_dir,
        image_size=size,
        channels=channels,
        on_bad_example=data.on_bad_example,
        seed=config.seed,
        splits=SplitChoice.from_config(data),
        keys=FeatureKeys.from_config(data),
        eval_transform=_eval_transform(config, size, pretrained) if size else None,
        train_crop=_train_crop(config),
        roles=roles,
    )
    return open_eval_sets(config, dataset)


def normalize_dataset(
    dataset: Dataset, config: ConfigDict, pretrained: PretrainedConfig | None = None
) -> Dataset:
    """Sets the mean and std that images are normalized with.

    They are those of the config; where it has none, those of the pretrained weights; without these,
    those of the training split, which are measured here.

    Raises:
      UserError: if their number is not that of the channels, or those of the pretrained weights are
        of values of another scale.
    """
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    if pretrained:
        preprocess = convert_preprocess(pretrained.preprocess, dataset.image_shape[-1])
        if not (mean and std):
            _check_scale(dataset, preprocess)
        mean, std = mean or preprocess.mean, std or preprocess.std
    dataset = dataset.with_normalization(mean, std)
    return dataset.with_normalization(*dataset.train.mean_std())


def _check_scale(dataset: Dataset, preprocess: Preprocess) -> None:
    """Raises `UserError` if a mean and std of pixels would normalize other numbers, or the reverse.

    Pixels are uint8 values divided by 255, or floats from 0 to 1.
    """
    is_float = dataset.has_arrays and dataset.train.images.dtype != np.uint8
    of_pixels = not isinstance(preprocess, ArrayPreprocess) or preprocess.dtype == "uint8"
    if is_float == (not of_pixels):
        return
    values = "uint8 values"
    if is_float:
        low, high = float(dataset.train.images.min()), float(dataset.train.images.max())
        if low >= 0 and high <= 1:
            return
        values = f"float32 values from {low:.4g} to {high:.4g}"
    scale = "pixels from 0 to 1" if of_pixels else "numbers that are not divided by 255"
    raise UserError(
        f"{dataset.name!r} has {values}, but the mean and std of the pretrained weights are of"
        f" {scale}: convert the values, or give --config.data.mean and --config.data.std"
    )


def gather_skipped(dataset: Dataset) -> list[str]:
    """Returns a line for each example that a process has skipped so far; all must call it.

    Each process reads a part of the examples. Here it gets to know those that the others skipped.

    Raises:
      UserError: if together they have skipped too many examples of a class.
    """
    for split in dataset.splits.values():
        if isinstance(split, StreamingSplit):
            own = [json.dumps(item) for item in split.skipped.items()]
            split.add_skipped(dict(map(json.loads, all_gather_strings(own))))
    return dataset.skipped


def _train_size(config: ConfigDict, pretrained: PretrainedConfig | None) -> int:
    """Returns the side of the training images; 0 for images of one size in memory."""
    if config.data.image_size != PRETRAINED_SIZE:
        return int(config.data.image_size)
    if not pretrained:
        raise UserError(
            "config.data.image_size is -1, the input size of the pretrained model, which is not"
            " known here: give the size in pixels"
        )
    return max(pretrained.preprocess.size)


def _eval_transform(
    config: ConfigDict, size: int, pretrained: PretrainedConfig | None
) -> EvalTransform:
    """Returns the transform of the config; where it has none, that of the pretrained weights."""
    data = config.data
    default = pretrained.preprocess if pretrained else EvalTransform(size=(size, size))
    squashes = "squash" in (data.train_crop, data.crop_mode) and data.crop_mode != "center"
    if squashes and default.crop_mode != "squash":
        default = replace(default, crop_mode="squash", crop_pct=1.0)
    return EvalTransform(
        size=(data.eval_size, data.eval_size) if data.eval_size else default.size,
        crop_pct=data.crop_pct or default.crop_pct,
        interpolation=data.interpolation or default.interpolation,
        crop_mode=data.crop_mode or default.crop_mode,
    )


def _train_crop(config: ConfigDict) -> TrainCrop:
    """Returns the crop of streamed training images."""
    scale, ratio = tuple(config.data.crop_scale), tuple(config.data.crop_ratio)
    return TrainCrop(crop_kind(config), scale, ratio, config.data.train_interpolation)
