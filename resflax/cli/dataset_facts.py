"""Facts about a dataset that the recipe of a run without `--config` is chosen from."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resflax.data import StreamingSplit
from resflax.data.decode import BadExampleError
from resflax.data.kinds import kind_of
from resflax.data.source import Source
from resflax.train.dataset import build_dataset
from resflax.train.run_builder import OpenDataset

MAX_SAMPLE = 1000  # images whose size is read
MAX_SIDE = 64  # larger images are not read further


class DatasetFacts(NamedTuple):
    """Facts about a dataset that a recipe is chosen from.

    Attributes:
      examples: number of training images.
      image_size: height and width of the images in pixels if they are read into memory as they
        are, or the sizes of all spatial axes of arrays; None if they have several sizes, or more
        than `MAX_SIDE` pixels.
      classes: number of classes.
      has_arrays: whether they are arrays other than uint8 images.
    """

    examples: int
    image_size: tuple[int, ...] | None
    classes: int
    has_arrays: bool = False


def dataset_facts(config: ConfigDict, open_dataset: OpenDataset = build_dataset) -> DatasetFacts:
    """Opens the dataset of a config, and reads the sizes of a sample of its training images.

    Raises:
      UserError: if the dataset cannot be opened.
    """
    if not kind_of(config.dataset).is_in_memory:
        config = config.copy_and_resolve_references()
        config.data.image_size = 8  # any size: opens the splits without reading images
    dataset = open_dataset(config, None)
    split = dataset.train
    size: tuple[int, ...] | None
    if isinstance(split, StreamingSplit):
        size = _common_size(split.source)
    else:
        size = split.image_shape[:-1]  # noise or arrays, which cannot be resized
    return DatasetFacts(len(split), size, dataset.num_classes, dataset.has_arrays)


def _common_size(source: Source) -> tuple[int, int] | None:
    """Returns height and width of a sample of images; None if they differ or are large."""
    sizes = set()
    for index in np.linspace(0, len(source) - 1, min(MAX_SAMPLE, len(source))).astype(int):
        try:
            height, width = source.read(int(index))[0].shape[:2]
        except BadExampleError:
            continue
        sizes.add((height, width))
        if len(sizes) > 1 or not 0 < max(height, width) <= MAX_SIDE:
            return None
    return sizes.pop() if sizes else None
