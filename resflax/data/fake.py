"""Synthetic datasets of noise, specified by name, for measuring training speed."""

import re

import numpy as np

from resflax.data.in_memory import InMemorySplit
from resflax.errors import UserError, unknown

PREFIX = "fake"
FORMAT = f"{PREFIX}:HEIGHTxWIDTHxCHANNELS:CLASSES:EXAMPLES"
SPLITS = ("train", "test")
DEFAULT = f"{PREFIX}:224x224x3:1000:1024"
# Rejects names that would exhaust the memory of the machine by mistake.
MAX_BYTES = 16 * 2**30


def is_fake(name: str) -> bool:
    """Returns whether a dataset name asks for noise."""
    return name == PREFIX or name.startswith(f"{PREFIX}:")


def make_fake(name: str, seed: int) -> tuple[InMemorySplit, InMemorySplit, tuple[str, ...]]:
    """Generates noise: a training split, a test split of an eighth of its size, and class names.

    The result is a function of the name and the seed. Pixels are uniform in 0 to 255 and labels
    uniform over the classes, so there is nothing to learn.

    Args:
      name: "fake", or a name in `FORMAT`, such as "fake:224x224x3:1000:1024".
      seed: seed of pixels and labels.

    Raises:
      UserError: if the name has another format, contains a 0, or asks for more than 16 GiB.

    >>> train, test, classes = make_fake("fake:4x6x3:3:16", seed=0)
    >>> train.images.shape, len(test), classes
    ((16, 4, 6, 3), 2, ('0', '1', '2'))
    """
    (train, classes), (test, _) = (make_fake_split(name, seed, split) for split in SPLITS)
    return train, test, classes


def make_fake_split(name: str, seed: int, split: str) -> tuple[InMemorySplit, tuple[str, ...]]:
    """Generates one split, "train" or "test", and class names, as `make_fake` does."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    shape, num_classes, num_examples = _parse(DEFAULT if name == PREFIX else name)
    count = num_examples if split == "train" else -(-num_examples // 8)
    noise = _noise([seed, SPLITS.index(split)], shape, num_classes, count)
    return noise, tuple(map(str, range(num_classes)))


def _parse(name: str) -> tuple[tuple[int, int, int], int, int]:
    """Returns image shape, number of classes and number of examples."""
    match = re.fullmatch(r"fake:{0}x{0}x{0}:{0}:{0}".format("([0-9]{1,9})"), name)
    numbers = [int(number) for number in match.groups()] if match else [0]
    if not all(numbers):
        raise UserError(
            f"dataset {name!r} does not specify noise: expected {FORMAT}, with numbers from 1 to"
            f" 999999999, for example {DEFAULT}"
        )
    height, width, channels, num_classes, num_examples = numbers
    size = height * width * channels * num_examples
    if size > MAX_BYTES:
        raise UserError(
            f"dataset {name!r} takes {size / 2**30:,.0f} GiB of memory: expected at most"
            f" {MAX_BYTES // 2**30}, reduce its number of examples"
        )
    return (height, width, channels), num_classes, num_examples


def _noise(
    seed: list[int], shape: tuple[int, int, int], num_classes: int, num_examples: int
) -> InMemorySplit:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_examples, *shape), np.uint8)
    return InMemorySplit(images, rng.integers(0, num_classes, num_examples, np.int32))
