"""ImageNet's synsets, from the files of TensorFlow Datasets, and its validation file names."""

import re
from functools import cache

VALIDATION_FILE = re.compile(r"ILSVRC2012_val_([0-9]{8})\.(JPEG|jpe?g|png)$")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@cache
def synsets() -> tuple[str, ...]:
    """Returns the 1,000 WordNet IDs of ILSVRC 2012, sorted: label `i` of a network is entry `i`.

    >>> len(synsets()), synsets()[0], sorted(synsets()) == list(synsets())
    (1000, 'n01440764', True)
    """
    return _read("datasets/imagenet2012/labels.txt")


@cache
def development_kit_synsets() -> tuple[str, ...]:
    """Returns the same WordNet IDs in the order of the development kit: ID `i` is entry `i - 1`.

    >>> sorted(development_kit_synsets()) == list(synsets())
    True
    """
    return _read("image_classification/imagenet_resized_labels.txt")


def validation_number(name: str) -> int | None:
    """Returns the number of an official validation image, from 1; None for another file name.

    >>> validation_number("val/n01440764/ILSVRC2012_val_00000293.JPEG")
    293
    """
    match = VALIDATION_FILE.search(name)
    return int(match[1]) if match else None


def _read(name: str) -> tuple[str, ...]:
    import tensorflow_datasets as tfds  # 0.3 s

    return tuple(tfds.core.tfds_path(name).read_text().split())
