"""Noise in the shape of a dataset, by its name alone: for measuring how fast a run trains."""

import re

import numpy as np

from resflax.data.in_memory import InMemorySplit
from resflax.errors import UserError

FAKE = "fake"
FORM = f"{FAKE}:HEIGHTxWIDTHxCHANNELS:CLASSES:EXAMPLES"
DEFAULT = f"{FAKE}:224x224x3:1000:1024"
# A slip of the hand should not take the machine down.
MAX_BYTES = 16 * 2**30


def is_fake(name: str) -> bool:
    """Whether a dataset's name asks for noise."""
    return name == FAKE or name.startswith(f"{FAKE}:")


def fake(name: str, seed: int) -> tuple[InMemorySplit, InMemorySplit, int]:
    """Noise to train on, an eighth as much to test on, and the number of classes.

    A function of the name and the seed: pixels are uniform from 0 to 255, labels from 0 to the
    number of classes less one, and nothing can be learnt.

    Args:
      name: "fake", or as `FORM` has it: "fake:224x224x3:1000:1024".
      seed: of pixels and labels.

    Raises:
      UserError: on a name of another form, a size that is 0, or more than 16 GiB.

    >>> train, test, classes = fake("fake:4x6x3:10:16", seed=0)
    >>> train.images.shape, len(test), classes
    ((16, 4, 6, 3), 2, 10)
    """
    shape, classes, examples = _parsed(DEFAULT if name == FAKE else name)
    train = _noise([seed, 0], shape, classes, examples)
    return train, _noise([seed, 1], shape, classes, -(-examples // 8)), classes


def _parsed(name: str) -> tuple[tuple[int, int, int], int, int]:
    """Image shape, number of classes and number of examples."""
    form = re.fullmatch(r"fake:{0}x{0}x{0}:{0}:{0}".format("([0-9]{1,9})"), name)
    numbers = [int(number) for number in form.groups()] if form else [0]
    if not all(numbers):
        raise UserError(
            f"dataset {name!r} does not say what noise to make: expected {FORM}, each from 1 to"
            f" 999999999, as {DEFAULT}"
        )
    height, width, channels, classes, examples = numbers
    size = height * width * channels * examples
    if size > MAX_BYTES:
        raise UserError(
            f"dataset {name!r} takes {size / 2**30:,.0f} GiB of memory: expected at most"
            f" {MAX_BYTES // 2**30}, lower its examples"
        )
    return (height, width, channels), classes, examples


def _noise(
    seed: list[int], shape: tuple[int, int, int], classes: int, examples: int
) -> InMemorySplit:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (examples, *shape), np.uint8)
    return InMemorySplit(images, rng.integers(0, classes, examples, np.int32))
