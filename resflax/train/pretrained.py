"""Pretrained weights as the start of a run, fitted to its dataset."""

import re

from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.errors import UserError
from resflax.train.config import build_model, spec_overrides
from resflax.weights import Preprocess
from resflax.weights.bridge import variable_shapes
from resflax.weights.imagenet import imagenet_classes
from resflax.weights.pretrained import adapt_weights
from resflax.weights.readers import Weights, read_weights

SYNSET = re.compile(r"n\d{8}")


def read_pretrained(config: ConfigDict) -> Weights:
    """Reads the weights that `config.pretrained` names.

    `config.model` names the architecture; if it is "", it is that of the weights, and `config.spec`
    may override fields that do not change the parameters.

    Raises:
      UserError: if the weights cannot be read, or are those of another architecture.
    """
    if config.model:
        return read_weights(config.pretrained, build_model(config).spec)
    weights = read_weights(config.pretrained)
    old, overrides = weights.config, spec_overrides(config)
    spec = old.spec.override(**overrides)
    if variable_shapes(spec, old.channels) != variable_shapes(old.spec, old.channels):
        keys = ", ".join(f"config.spec.{key}={value!r}" for key, value in overrides.items())
        raise UserError(
            f"{config.pretrained} does not fit {keys}: expected fields that leave the parameters"
            " as they are"
        )
    return weights._replace(config=old._replace(spec=spec))


def fit_to_dataset(weights: Weights, config: ConfigDict, dataset: Dataset) -> Weights:
    """Converts weights to the dataset's channels, and replaces a head for other classes.

    The head is kept if the weights have the dataset's class names, or equally many classes whose
    names are not known. `source` says which.
    """
    classes, labels = dataset.num_classes, weights.config.labels
    has_other_names = not same_classes(labels, dataset.classes)
    fitted = adapt_weights(
        weights,
        num_classes=classes,
        channels=dataset.image_shape[2],
        reset_head=config.reset_head or has_other_names,
        seed=config.seed,
    )
    source = fitted.source
    if weights.config.spec.num_classes == classes and has_other_names:
        source += ", since theirs have other names"
    elif weights.config.spec.num_classes == classes and not config.reset_head:
        source += "; head kept"
    return fitted._replace(source=source)


def same_classes(labels: tuple[str, ...], classes: tuple[str, ...]) -> bool:
    """Returns whether a model's class names are those of a dataset, or not known.

    A dataset with ImageNet's 1,000 synsets has the classes of a model with ImageNet's class names.

    >>> same_classes((), ("cat", "dog")), same_classes(("dog", "cat"), ("cat", "dog"))
    (True, False)
    """
    if labels in ((), classes):
        return True
    is_imagenet = len(classes) == 1000 and all(map(SYNSET.fullmatch, classes))
    return is_imagenet and labels == imagenet_classes()


def describe_input(preprocess: Preprocess, *, cropped: bool) -> str:
    """Returns one line on the normalization and, if images are cropped, the evaluation."""
    mean, std = (
        ", ".join(f"{value:.4g}" for value in v) for v in (preprocess.mean, preprocess.std)
    )
    height, width = preprocess.size
    line = f"images: mean {mean}, std {std}"
    if cropped:
        line += (
            f"; evaluated at {width}x{height}, crop {preprocess.crop_pct:g},"
            f" {preprocess.interpolation}"
        )
    return line
