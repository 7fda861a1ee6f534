"""Completes the config of weights from the shapes of their arrays."""

from resflax.errors import UserError
from resflax.nn import Spec
from resflax.weights.adapt import convert_preprocess
from resflax.weights.files import Arrays
from resflax.weights.preprocess import default_preprocess
from resflax.weights.pretrained_config import PretrainedConfig

# Names of the arrays that give the number of image channels and of classes, in every layout.
TORCH_STEMS = (
    "conv1",
    "conv1.0",
    "stem.conv",
    "stem.conv1",
    "resnet.embedder.embedder.convolution",
)
FLAX_STEMS = ("params/stem_conv/kernel", "params/stem_conv1/kernel")
HEADS = ("fc.bias", "head.fc.bias", "classifier.1.bias", "linear.bias", "params/head/bias")


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
    if spec is not None:
        config = config or PretrainedConfig(spec, 3, default_preprocess(spec))
        config = config._replace(spec=spec.override(num_classes=classes))
    elif config is None:
        raise UserError(
            f"cannot tell which model {where} is for: pass its name (--model NAME, or"
            " --config.model=NAME in training)"
        )
    elif not classes:
        config = config._replace(spec=config.spec.override(num_classes=0))
    return _check_labels(
        config._replace(
            channels=channels or config.channels,
            preprocess=convert_preprocess(config.preprocess, channels or config.channels),
        ),
        given,
        where,
    )


def _check_labels(
    config: PretrainedConfig, given: PretrainedConfig | None, where: str
) -> PretrainedConfig:
    """Returns the config, without labels if the arrays have another number of classes than it.

    Raises:
      UserError: if the config has another number of labels than of classes.
    """
    if given is None or not given.labels:
        return config
    if len(given.labels) != given.spec.num_classes:
        raise UserError(
            f"{where} has {len(given.labels)} class names for {given.spec.num_classes} classes:"
            " expected one per class"
        )
    return config if len(config.labels) == config.spec.num_classes else config._replace(labels=())


def _count_channels_and_classes(arrays: Arrays) -> tuple[int, int]:
    """Returns the numbers of image channels and classes of arrays; 0 if they do not tell."""
    classes, channels = 0, 0
    for key, array in arrays.items():
        if key in HEADS and array.ndim == 1:
            classes = array.shape[0]
        elif key.removesuffix(".weight") in TORCH_STEMS and array.ndim == 4:
            channels = array.shape[1]
        elif key in FLAX_STEMS and array.ndim == 4:
            channels = array.shape[2]
    return channels, classes
