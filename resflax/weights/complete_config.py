"""Completes the config of weights from the shapes of their arrays."""

from resflax.errors import UserError
from resflax.nn import Spec
from resflax.weights.adapt import convert_preprocess
from resflax.weights.arrays import Arrays
from resflax.weights.layouts import FLAX_STEMS, HEADS, STEMS
from resflax.weights.mismatch import describe_network
from resflax.weights.preprocess import default_preprocess
from resflax.weights.pretrained_config import PretrainedConfig


def complete_config(
    given: PretrainedConfig | None, arrays: Arrays, spec: Spec | None, where: str
) -> PretrainedConfig:
    """Returns the config with the given architecture, and the arrays' channels and classes.

    The number of classes in a config.json is not changed, as a mismatch is an error, unless the
    arrays have no head.

    Args:
      given: the config that came with the arrays, if any.
      arrays: the arrays of a network, by their names in any layout.
      spec: the architecture, if the user named one.
      where: name of the arrays, for errors.

    Raises:
      UserError: if the model is unknown, or has another number of classes than class names.
    """
    config, channels, classes = given, *_count_channels_and_classes(arrays)
    network = spec or (config.spec if config else None)
    if network and "head" in network.own_parts:  # whose arrays do not tell the classes
        classes = config.spec.num_classes if config else network.num_classes
    if spec is not None:
        config = config or PretrainedConfig(spec, 3, default_preprocess(spec))
        config = config._replace(spec=spec.override(num_classes=classes))
    elif config is None:
        hint = describe_network(arrays)
        raise UserError(
            f"cannot tell which model {where} is for: pass its name (--model NAME, or"
            f" --config.model=NAME in training){hint and f': {hint}'}"
        )
    elif not classes:
        config = config._replace(spec=config.spec.override(num_classes=0))
    if spec is None:
        _check_labels(given, where)
    channels = channels or config.channels
    fits = len(config.labels) == config.spec.num_classes
    return config._replace(
        channels=channels,
        preprocess=convert_preprocess(config.preprocess, channels),
        labels=config.labels if fits else (),
    )


def _check_labels(config: PretrainedConfig | None, where: str) -> None:
    """Raises `UserError` if a config has another number of labels than of classes."""
    if config is None or not config.labels:
        return
    if len(config.labels) != config.spec.num_classes:
        raise UserError(
            f"{where} has {len(config.labels)} class names for {config.spec.num_classes} classes:"
            " expected one per class"
        )


def _count_channels_and_classes(arrays: Arrays) -> tuple[int, int]:
    """Returns the numbers of image channels and classes of arrays; 0 if they do not tell."""
    classes, channels = 0, 0
    for key, array in arrays.items():
        if key in HEADS and array.ndim == 1:
            classes = array.shape[0]
        elif key.removesuffix(".weight") in STEMS and array.ndim > 2:
            channels = array.shape[1]
        elif key in FLAX_STEMS and array.ndim > 2:
            channels = array.shape[-2]
    return channels, classes
