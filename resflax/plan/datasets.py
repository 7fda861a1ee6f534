"""Datasets of which only sizes are known: a plan needs no data."""

import re
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resflax.data import Dataset, InMemorySplit
from resflax.data.array_source import ArraySource
from resflax.data.fake import DEFAULT, is_fake
from resflax.data.location import FeatureKeys, Location
from resflax.data.roles import Roles, SplitChoice, open_roles
from resflax.data.split_names import SplitNames
from resflax.errors import UserError
from resflax.train.dataset import build_dataset
from resflax.weights import PretrainedConfig

FORMAT = "HEIGHTxWIDTHxCHANNELS:CLASSES:EXAMPLES"
MAX_SIDE, MAX_CLASSES = 4096, 1_000_000
# Images of several sizes; the config's `data.image_size` is that of the network's input.
SEVERAL_SIZES = (0, 0, 3)


class Facts(NamedTuple):
    """Sizes of a dataset, on which a compiled step depends.

    Attributes:
      image_shape: height, width and channels; `SEVERAL_SIZES` for images of several sizes.
      classes: number of classes.
      train: number of training examples.
      test: number of test examples.
    """

    image_shape: tuple[int, int, int]
    classes: int
    train: int
    test: int


# From the pages of TensorFlow Datasets; of ImageNet, the test split has no labels.
KNOWN = {
    "cifar10": Facts((32, 32, 3), 10, 50_000, 10_000),
    "cifar100": Facts((32, 32, 3), 100, 50_000, 10_000),
    "digits": Facts((8, 8, 1), 10, 1_437, 360),
    "fashion_mnist": Facts((28, 28, 1), 10, 60_000, 10_000),
    "food101": Facts(SEVERAL_SIZES, 101, 75_750, 25_250),
    "imagenet2012": Facts(SEVERAL_SIZES, 1000, 1_281_167, 50_000),
    "imagenette": Facts(SEVERAL_SIZES, 10, 9_469, 3_925),
    "kmnist": Facts((28, 28, 1), 10, 60_000, 10_000),
    "mnist": Facts((28, 28, 1), 10, 60_000, 10_000),
    "oxford_flowers102": Facts(SEVERAL_SIZES, 102, 1_020, 6_149),
    "stl10": Facts((96, 96, 3), 10, 5_000, 8_000),
    "svhn_cropped": Facts((32, 32, 3), 10, 73_257, 26_032),
}


def parse_facts(text: str, option: str = "--data") -> Facts:
    """Returns the facts of a text in `FORMAT`.

    Raises:
      UserError: if it has another format.

    >>> parse_facts("64x64x3:200:100000")
    Facts(image_shape=(64, 64, 3), classes=200, train=100000, test=12500)
    """
    number = "([1-9][0-9]{0,8})"
    match = re.fullmatch(f"{number}x{number}x{number}:{number}:{number}", text)
    if not match:
        raise UserError(f"{option} is {text!r}: expected {FORMAT}, such as 224x224x3:1000:1281167")
    height, width, channels, classes, train = map(int, match.groups())
    if max(height, width, channels) > MAX_SIDE or classes > MAX_CLASSES:
        raise UserError(
            f"{option} is {text!r}: expected at most {MAX_SIDE} pixels a side, {MAX_SIDE} channels"
            f" and {MAX_CLASSES} classes"
        )
    return Facts((height, width, channels), classes, train, -(-train // 8))


def planned_dataset(
    config: ConfigDict, pretrained: PretrainedConfig | None = None, given: Facts | None = None
) -> Dataset:
    """Returns a config's dataset without examples: it has all sizes, and no images.

    Args:
      config: see `default_config`.
      pretrained: see `build_dataset`.
      given: facts of a dataset that is not here and not in `KNOWN`.

    Raises:
      UserError: if nothing is known about the dataset.
    """
    facts = given or _find_facts(config)
    if facts.image_shape == SEVERAL_SIZES and not config.data.image_size:
        raise UserError(
            f"config.data.image_size is 0 and the images of {config.dataset!r} have several sizes:"
            " expected a size in pixels"
        )
    classes = tuple(map(str, range(facts.classes)))
    train, test = (_blank(facts.image_shape, count) for count in (facts.train, facts.test))
    sources: list[Any] = [
        ArraySource(name, split, classes) for name, split in (("train", train), ("test", test))
    ]
    roles = Roles(sources[0], None, sources[1], SplitNames(), "", "")
    dataset = build_dataset(config, pretrained, roles)
    # Measured from the images where the config has none; they are constants of the programs.
    channels = dataset.image_shape[-1]
    normalization = (0.5,) * channels, (0.25,) * channels
    return replace(dataset, train=replace(dataset.train, mean_std_override=normalization))


def _blank(shape: tuple[int, int, int], examples: int) -> InMemorySplit:
    """Returns a split of black images that takes the memory of one pixel."""
    images = np.broadcast_to(np.uint8(0), (examples, *shape))
    return InMemorySplit(images, np.broadcast_to(np.int32(0), (examples,)))


def _find_facts(config: ConfigDict) -> Facts:
    name = config.dataset
    if is_fake(name):
        return parse_facts((name if ":" in name else DEFAULT).partition(":")[2], "--config.dataset")
    known = KNOWN.get(name.partition(":")[0])  # without a version
    if known:
        return known
    try:
        return _read_facts(config)
    except UserError as e:
        raise UserError(f"{e}; or plan without it: --data={FORMAT}") from e


def _read_facts(config: ConfigDict) -> Facts:
    """Opens the dataset, and reads its first image where the size depends on it."""
    data = config.data
    location = Location(
        config.dataset,
        data.data_dir,
        data.on_bad_example,
        config.seed,
        FeatureKeys.from_config(data),
    )
    roles = open_roles(location, SplitChoice.from_config(data))
    shape = SEVERAL_SIZES
    if not data.image_size:
        shape = roles.train.read(0, data.channels)[0].shape
    return Facts(shape, len(roles.train.classes), len(roles.train), len(roles.test))
