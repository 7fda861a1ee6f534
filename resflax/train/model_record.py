"""The record of a model in a run's checkpoints: what inference needs besides the arrays."""

from typing import Any

import flax.linen as nn

from resflax.data import Dataset, StreamingSplit
from resflax.nn import ResNet
from resflax.weights import Preprocess, PretrainedConfig
from resflax.weights.array_preprocess import ArrayPreprocess


def model_record(model: nn.Module, dataset: Dataset) -> PretrainedConfig | None:
    """Returns architecture, preprocessing and class names of a model that a dataset trains.

    Images in memory have one size and are not cropped; those of a streamed dataset are resized and
    cropped as its test split. Mean and standard deviation are those of the training split, which
    normalize all images.

    Args:
      model: the network; None is returned if it is not a `ResNet`.
      dataset: its dataset.
    """
    if not isinstance(model, ResNet):
        return None
    mean, std = dataset.train.mean_std()
    labels = dataset.classes if model.spec.num_classes == dataset.num_classes else ()
    *space, channels = dataset.test.image_shape
    if dataset.has_arrays:
        arrays = ArrayPreprocess(
            size=(1, *space)[-2:],
            crop_pct=1.0,
            mean=tuple(mean),
            std=tuple(std),
            space=tuple(space),
            dtype=str(dataset.test.images.dtype),
        )
        return PretrainedConfig(model.spec, channels, arrays, labels)
    height, width = space
    fields: dict[str, Any] = {
        "size": (height, width),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "crop_mode": "center",
    }
    if isinstance(dataset.test, StreamingSplit):
        fields = {key: getattr(dataset.test.transform, key) for key in fields}
    preprocess = Preprocess(**fields, mean=tuple(mean), std=tuple(std))
    return PretrainedConfig(model.spec, channels, preprocess, labels)
