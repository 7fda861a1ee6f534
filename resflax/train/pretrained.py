"""Pretrained weights as the start of a run, fitted to its dataset."""

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.data.class_names import describe_difference, match_classes, name_tables
from resflax.errors import UserError
from resflax.train.config import build_model, spec_overrides
from resflax.weights import Preprocess
from resflax.weights.adapt import permute_head
from resflax.weights.pretrained import adapt_weights
from resflax.weights.readers import Weights, read_weights
from resflax.weights.shapes import variable_shapes


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


def fit_to_dataset(
    weights: Weights, config: ConfigDict, dataset: Dataset, seed: int | None = None
) -> Weights:
    """Converts weights to the dataset's channels, and replaces a head for other classes.

    The head is kept if the weights have the dataset's class names, in any order, or equally many
    classes whose names are not known (`match_classes`). `source` says which. A new head is
    initialized from `seed`, by default that of the config.

    Raises:
      UserError: if the config trains nothing and the head would be new.
    """
    old, count = weights.config, weights.config.spec.num_classes
    tables = name_tables(old.labels, count, dataset.classes)
    difference = describe_difference(dataset.classes, tables)
    order = match_classes(dataset.classes, tables, count) if count == dataset.num_classes else None
    if order is None and not config.epochs:
        has = f"has {count} classes" if count else "has no classification head"
        raise UserError(
            f"config.epochs is 0, which evaluates weights as they are, but {config.pretrained}"
            f" {has} and {dataset.name} {dataset.num_classes} classes{difference}: expected the"
            " same classes, or 1 epoch or more to train a new head"
        )
    keeps_head = order is not None and not config.reset_head
    if order is not None and keeps_head:
        weights = sort_classes(weights, order)
    fitted = adapt_weights(
        weights,
        num_classes=dataset.num_classes,
        channels=dataset.image_shape[-1],
        reset_head=not keeps_head,
        seed=config.seed if seed is None else seed,
    )
    source = fitted.source
    if keeps_head:
        source += "; head kept"
    elif count == dataset.num_classes and order is None:
        source += f", since theirs have other names{difference}"
    return fitted._replace(source=source)


def sort_classes(weights: Weights, order: Int[np.ndarray, " classes"]) -> Weights:
    """Returns weights whose class `i` is the class `order[i]` of the given ones."""
    if (order == np.arange(len(order))).all():
        return weights
    labels = tuple(weights.config.labels[i] for i in order) if weights.config.labels else ()
    return weights._replace(
        config=weights.config._replace(labels=labels),
        variables=permute_head(weights.variables, order),
        source=f"{weights.source}; classes in the order of the dataset",
    )


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
