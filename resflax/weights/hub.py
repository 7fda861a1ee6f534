"""Networks with their weights, from the Hugging Face Hub or a local folder of the same layout."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resflax.errors import UserError
from resflax.nn import ResNet, Spec
from resflax.weights import files
from resflax.weights.bridge import Variables, from_torch, is_flat, replace_head, stacked, unflatten
from resflax.weights.preprocess import HALF, Preprocess, default_preprocess
from resflax.zoo import create_model, get_spec

PATTERNS = ["*.json", "model*.safetensors"]
PICKLED = ["pytorch_model*.bin"]


class Pretrained(NamedTuple):
    """A network that is ready to run: `model.apply(variables, preprocess(image)[None], ...)`."""

    model: ResNet
    variables: Variables
    preprocess: Preprocess


class PretrainedConfig(NamedTuple):
    """What the config beside weights says.

    Attributes:
      spec: the architecture, with the number of classes of the weights.
      channels: of its images.
      preprocess: how it is evaluated.
      labels: the names of its classes, where it tells them.
      told: whether there is one; else preprocessing is what is usual for the network.
    """

    spec: Spec
    channels: int
    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    told: bool = True


def load_pretrained(
    name: str | Path,
    *,
    num_classes: int | None = None,
    revision: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Pretrained:
    """A published network: its module, its variables in float32, and its preprocessing.

    Args:
      name: of a repository of the Hub, as "timm/resnet50.a1_in1k"; or a folder that holds the same
        files (config.json and model.safetensors). The Hub's own settings (HF_HOME, HF_HUB_OFFLINE,
        HF_ENDPOINT) hold.
      num_classes: a head of so many classes, freshly initialised, in place of the published one; 0
        for pooled features.
      revision: of the repository: a branch, a tag or a commit.
      seed: of the new head.
      **options: of `create_model`, as `dtype="bfloat16"`, `features_only=True` or
        `output_stride=8`.

    Raises:
      UserError: if there is no such repository or file, it cannot be reached, or it holds another
        kind of network.
    """
    folder = fetch(name, revision)
    card = read_config(folder)
    arrays = {key: _wide(array) for key, array in files.load(folder).items()}
    variables = from_torch(card.spec, arrays, channels=card.channels, scan=False)
    classes = card.spec.num_classes
    if num_classes is not None and num_classes != classes:
        classes = num_classes
        variables = replace_head(variables, classes, seed=seed)
    model = create_model(card.spec, num_classes=classes, **options)
    return Pretrained(model, stacked(variables) if model.scan else variables, card.preprocess)


def fetch(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a repository, downloaded into the Hub's cache if it is not there."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise UserError(
            f"there is no folder {name}, nor can a repository (owner/name) be called so"
        )
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(str(name), revision=revision, allow_patterns=PATTERNS))
        if not any(folder.glob("model*.safetensors")):
            wanted = PATTERNS + PICKLED
            folder = Path(
                hub.snapshot_download(str(name), revision=revision, allow_patterns=wanted)
            )
    except Exception as e:  # of the Hub's many kinds of errors, each says what it found
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UserError(
            f"cannot fetch {name} from the Hub: {reason}; a local folder with config.json and"
            " model.safetensors will do as well"
        ) from e
    return folder


def read_config(folder: Path) -> PretrainedConfig:
    """What a folder's config.json says, timm's or Transformers'.

    Raises:
      UserError: if it is missing or broken, or means a network that the zoo has not.
    """
    config = _json(folder / "config.json")
    try:
        if config.get("model_type") == "resnet":
            beside = folder / "preprocessor_config.json"
            return _transformers(config, _json(beside) if beside.exists() else {})
        return _timm(config)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise UserError(f"{folder / 'config.json'} is no config of a ResNet: {e!r}") from e


def read_weights(
    where: str, name: str | Spec | None = None
) -> tuple[PretrainedConfig, Variables, bool]:
    """What a file, a folder or a repository of the Hub holds, and whether in our own names.

    Args:
      where: any of these.
      name: of the network (or its spec); None to read it in the config beside the weights.

    Raises:
      UserError: if nothing says which network it is, or the weights are not that network's.
    """
    path = Path(where) if Path(where).exists() else fetch(where)
    folder = path if path.is_dir() else path.parent
    arrays = files.load(path)
    card = read_config(folder) if (folder / "config.json").exists() else None
    if name is not None:
        spec = get_spec(name)
        usual = PretrainedConfig(spec, 3, default_preprocess(spec), told=False)
        card = _as_found((card or usual)._replace(spec=spec), arrays)
    if card is None:
        raise UserError(f"{where} does not say which network it is: expected --model NAME")
    if is_flat(arrays):
        return card, unflatten(card.spec, arrays, channels=card.channels), True
    return card, from_torch(card.spec, arrays, channels=card.channels, scan=False), False


STEMS = ("conv1", "conv1.0", "stem.conv", "stem.conv1", "resnet.embedder.embedder.convolution")
OUR_STEMS = ("params/stem_conv/kernel", "params/stem_conv1/kernel")
HEADS = ("fc.bias", "head.fc.bias", "classifier.1.bias", "linear.bias", "params/head/bias")


def _as_found(card: PretrainedConfig, arrays: dict[str, np.ndarray]) -> PretrainedConfig:
    """The card with the channels and the number of classes that the arrays have."""
    classes, channels = 0, card.channels
    for key, array in arrays.items():
        key = key.removeprefix("module.")
        if key in HEADS and array.ndim == 1:
            classes = array.shape[0]
        elif key.removesuffix(".weight") in STEMS and array.ndim == 4:
            channels = array.shape[1]
        elif key in OUR_STEMS and array.ndim == 4:
            channels = array.shape[2]
    card = card._replace(spec=card.spec.override(num_classes=classes), channels=channels)
    if not card.told and channels != 3:
        grey = replace(card.preprocess, mean=HALF[:1] * channels, std=HALF[:1] * channels)
        card = card._replace(preprocess=grey)
    return card


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise UserError(f"there is no {path.name} in {path.parent}: expected one") from e
    except ValueError as e:
        raise UserError(f"{path} is no JSON: {e}") from e
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}: expected a dictionary")
    return found


def _timm(config: dict[str, Any]) -> PretrainedConfig:
    if "architecture" not in config:
        raise UserError("the config names no architecture: expected timm's or Transformers' ResNet")
    # The architecture may carry a tag: "resnet50.a1_in1k".
    spec = get_spec(config["architecture"].split(".")[0])
    arguments = dict(config.get("model_args") or {})
    for trained in ("drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last"):
        arguments.pop(trained, None)  # means nothing to weights that are there
    pool = arguments.pop("global_pool", config.get("global_pool", "avg"))
    if pool != "avg":
        raise UserError(f"global_pool is {pool!r}: expected 'avg'")
    channels = arguments.pop("in_chans", None)
    spec = spec.override(**{"num_classes": config.get("num_classes", 1000), **arguments})
    told = config.get("pretrained_cfg") or config
    usual = default_preprocess(spec)
    input_size = told.get("input_size", (3, *usual.size))
    preprocess = Preprocess(
        size=(input_size[1], input_size[2]),
        crop_pct=_told(told, "crop_pct", usual.crop_pct),
        interpolation=_told(told, "interpolation", usual.interpolation),
        mean=tuple(told.get("mean", usual.mean)),
        std=tuple(told.get("std", usual.std)),
        crop_mode=told.get("crop_mode", "center"),
    )
    labels = config.get("label_names") or ()
    labels = labels.values() if isinstance(labels, dict) else labels
    return PretrainedConfig(spec, channels or input_size[0], preprocess, tuple(map(str, labels)))


def _told(config: dict[str, Any], key: str, usual: Any) -> Any:
    return usual if config.get(key) is None else config[key]


def _transformers(config: dict[str, Any], image: dict[str, Any]) -> PretrainedConfig:
    if config.get("hidden_act", "relu") != "relu" or config.get("downsample_in_first_stage"):
        raise UserError("this ResNet of Transformers has another activation or an extra stride")
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    sizes = config["hidden_sizes"]
    block = "bottleneck_v1" if config.get("downsample_in_bottleneck") else "bottleneck"
    names = config.get("id2label") or {}
    spec = Spec(
        depths=tuple(config["depths"]),
        widths=tuple(size // 4 if bottleneck else size for size in sizes),
        block=block if bottleneck else "basic",
        stem_width=config["embedding_size"],
        num_classes=len(names) or config.get("num_labels", 2),
    )
    usual = default_preprocess(spec)
    size = image.get("size") or {}  # older files have the number alone
    size = size.get("shortest_edge", usual.size[0]) if isinstance(size, dict) else size
    resampling = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    preprocess = Preprocess(
        size=(size, size),
        crop_pct=image.get("crop_pct") or usual.crop_pct,
        interpolation=resampling[image.get("resample", 3)],
        mean=tuple(image.get("image_mean", usual.mean)),
        std=tuple(image.get("image_std", usual.std)),
    )
    labels = tuple(names[key] for key in sorted(names, key=int))
    return PretrainedConfig(spec, config.get("num_channels", 3), preprocess, labels)


def _wide(array: np.ndarray) -> np.ndarray:
    """Half precision as float32, which holds it exactly; parameters are kept in float32."""
    return array if array.dtype.kind in "iub" else array.astype(np.float32)
