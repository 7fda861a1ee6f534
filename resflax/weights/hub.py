"""Pretrained networks from the Hugging Face Hub or a local folder with the same files."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resflax.errors import UserError
from resflax.nn import ResNet, Spec
from resflax.weights.bridge import (
    Variables,
    from_torch,
    is_flat,
    replace_head,
    stack_variables,
    unflatten,
)
from resflax.weights.files import Arrays, load_file
from resflax.weights.preprocess import HALF, Preprocess, default_preprocess
from resflax.weights.pretrained_config import PretrainedConfig, read_config
from resflax.zoo import create_model, get_spec

PATTERNS = ["*.json", "model*.safetensors"]
PICKLE_PATTERNS = ["pytorch_model*.bin"]

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


class Pretrained(NamedTuple):
    """A model, its variables and its preprocessing.

    The logits of one image are
    `model.apply(variables, preprocess(image)[None], train=False)`.
    """

    model: ResNet
    variables: Variables
    preprocess: Preprocess


def load_pretrained(
    name: str | Path,
    *,
    num_classes: int | None = None,
    revision: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Pretrained:
    """Loads a pretrained network: its model, float32 variables and preprocessing.

    Args:
      name: a Hub repository, such as "timm/resnet50.a1_in1k", or a local folder with the same files
        (config.json and model.safetensors). The environment variables HF_HOME, HF_HUB_OFFLINE and
        HF_ENDPOINT apply.
      num_classes: if it differs from the pretrained number of classes, the head is replaced by a
        newly initialized one; 0 gives pooled features.
      revision: branch, tag or commit of the repository.
      seed: seed of the new head.
      **options: arguments of `create_model`, such as `dtype="bfloat16"`, `features_only=True` or
        `output_stride=8`.

    Raises:
      UserError: if the repository or folder is missing or cannot be reached, or holds weights of
        another kind of network.
    """
    folder = fetch(name, revision)
    config = read_config(folder)
    arrays = {key: _to_float32(array) for key, array in load_file(folder).items()}
    variables = from_torch(config.spec, arrays, channels=config.channels, scan=False)
    classes = config.spec.num_classes
    if num_classes is not None and num_classes != classes:
        classes = num_classes
        variables = replace_head(variables, classes, seed=seed)
    model = create_model(config.spec, num_classes=classes, **options)
    if model.scan:
        variables = stack_variables(variables)
    return Pretrained(model, variables, config.preprocess)


def fetch(name: str | Path, revision: str | None = None) -> Path:
    """Returns the local folder of a Hub repository, downloading it to the Hub's cache if needed.

    A local folder is returned as it is. Pickled weights are downloaded only if the repository has
    no safetensors files.

    Raises:
      UserError: if `name` is neither a folder nor a repository name, or the download fails.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise UserError(f"{name} is neither a folder nor a Hub repository (owner/name)")
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(str(name), revision=revision, allow_patterns=PATTERNS))
        if not any(folder.glob("model*.safetensors")):
            patterns = PATTERNS + PICKLE_PATTERNS
            folder = Path(
                hub.snapshot_download(str(name), revision=revision, allow_patterns=patterns)
            )
    except Exception as e:  # the Hub raises many unrelated exception types
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(
            f"cannot fetch {name} from the Hub: {reason}; you can also pass a local folder with"
            " config.json and model.safetensors"
        ) from e
    return folder


def read_weights(
    source: str, name: str | Spec | None = None
) -> tuple[PretrainedConfig, Variables, bool]:
    """Reads the weights in a file, a folder or a Hub repository, in torch's or resflax's names.

    Args:
      source: path of a file or folder, or a repository name.
      name: model name or spec; None to use the config.json in the same folder.

    Returns:
      The config; the variables in the tree of `scan=False`, with the dtypes of the file; and
      whether the arrays had resflax's names (`flatten`).

    Raises:
      UserError: if the model is unknown or the weights do not match it.
    """
    path = Path(source) if Path(source).exists() else fetch(source)
    folder = path if path.is_dir() else path.parent
    arrays = load_file(path)
    config = read_config(folder) if (folder / "config.json").exists() else None
    if name is not None:
        spec = get_spec(name)
        default = PretrainedConfig(spec, 3, default_preprocess(spec), has_config=False)
        config = _match_arrays((config or default)._replace(spec=spec), arrays)
    if config is None:
        raise UserError(f"cannot tell which model {source} is for: pass its name (--model NAME)")
    if is_flat(arrays):
        return config, unflatten(config.spec, arrays, channels=config.channels), True
    variables = from_torch(config.spec, arrays, channels=config.channels, scan=False)
    return config, variables, False


def _match_arrays(config: PretrainedConfig, arrays: Arrays) -> PretrainedConfig:
    """Sets the numbers of channels and classes to those of the arrays."""
    classes, channels = 0, config.channels
    for key, array in arrays.items():
        key = key.removeprefix("module.")
        if key in HEADS and array.ndim == 1:
            classes = array.shape[0]
        elif key.removesuffix(".weight") in TORCH_STEMS and array.ndim == 4:
            channels = array.shape[1]
        elif key in FLAX_STEMS and array.ndim == 4:
            channels = array.shape[2]
    config = config._replace(spec=config.spec.override(num_classes=classes), channels=channels)
    if not config.has_config and channels != 3:
        mean = std = HALF[:1] * channels
        config = config._replace(preprocess=replace(config.preprocess, mean=mean, std=std))
    return config


def _to_float32(array: np.ndarray) -> np.ndarray:
    """Converts floating-point arrays to float32, the dtype of parameters."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)
