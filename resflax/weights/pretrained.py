"""Models with pretrained weights, from anywhere that weights can be read."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.nn import ResNet, Spec
from resflax.weights.adapt import convert_channels, convert_preprocess, replace_head
from resflax.weights.bridge import Variables, stack_variables
from resflax.weights.preprocess import Preprocess
from resflax.weights.readers import Weights, read_weights
from resflax.zoo import create_model


class Pretrained(NamedTuple):
    """A model, its variables, its preprocessing and its class names.

    The logits of one image are
    `model.apply(variables, preprocess(image)[None], train=False)`.

    Attributes:
      model: the network.
      variables: float32 variables in the tree of `model`.
      preprocess: resize, crop and normalization for evaluation.
      classes: class names by label; empty if they are not known.
      source: one line that says what was loaded.
    """

    model: ResNet
    variables: Variables
    preprocess: Preprocess
    classes: tuple[str, ...]
    source: str


def load_pretrained(
    where: str | Path,
    *,
    model: str | Spec | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    reset_head: bool = False,
    revision: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Pretrained:
    """Loads a trained network: its model, float32 variables, preprocessing and class names.

    Args:
      where: the workdir of a run ("runs/x", "runs/x@best", "runs/x@200"), a folder in timm's or
        Transformers' layout, a weights file (with `model`), a Hub repository
        ("timm/resnet50.a1_in1k") or a tagged name ("resnet50.a1_in1k"); see `read_weights`.
      model: model name or spec; by default that of the run or the config.json.
      num_classes: number of classes; if the weights have another number or no head, a newly
        initialized head replaces theirs, without class names. 0 gives pooled features.
      channels: number of image channels; the first convolution and the normalization are converted
        if the weights have another number (`convert_channels`).
      reset_head: initialize the head even if the number of classes is that of the weights.
      revision: branch, tag or commit of a repository.
      seed: seed of a new head.
      **options: arguments of `create_model`, such as `dtype="bfloat16"`, `features_only=True` or
        `output_stride=8`.

    Raises:
      UserError: if there are no weights, they cannot be reached, or they are those of another kind
        of network.
    """
    weights = adapt_weights(
        read_weights(where, model, revision=revision),
        num_classes=num_classes,
        channels=channels,
        reset_head=reset_head,
        seed=seed,
    )
    config = weights.config
    network = create_model(config.spec, **options)
    variables = stack_variables(weights.variables) if network.scan else weights.variables
    return Pretrained(network, variables, config.preprocess, config.labels, weights.source)


def adapt_weights(
    weights: Weights,
    *,
    num_classes: int | None = None,
    channels: int | None = None,
    reset_head: bool = False,
    seed: int = 0,
) -> Weights:
    """Converts weights to float32, another number of classes and another number of channels.

    See `load_pretrained` for the arguments. `source` says what was changed.

    Raises:
      UserError: if `num_classes` or `channels` is invalid.
    """
    config, source = weights.config, weights.source
    variables = jax.tree.map(_to_float32, weights.variables)
    old_classes = config.spec.num_classes
    classes = old_classes if num_classes is None else num_classes
    if classes != old_classes or (reset_head and classes):
        variables = replace_head(variables, classes, seed=seed)
        config = config._replace(spec=config.spec.override(num_classes=classes), labels=())
        source += f"; new head for {classes} classes" if classes else "; without its head"
    if channels is not None and channels != config.channels:
        variables = convert_channels(variables, channels)
        source += f"; converted from {config.channels} to {channels} image channels"
        preprocess = convert_preprocess(config.preprocess, channels)
        config = config._replace(channels=channels, preprocess=preprocess)
    return weights._replace(config=config, variables=variables, source=source)


def _to_float32(array: Any) -> np.ndarray:
    """Converts floating-point arrays to float32, the dtype of parameters."""
    array = np.asarray(array)
    return array if array.dtype.kind in "iub" else array.astype(np.float32)
