"""Reads weights by where they are: a run, a folder, a file, a Hub repository."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from resflax.data.class_names import IMAGENET_CLASSES
from resflax.errors import UserError, unknown
from resflax.nn import Spec
from resflax.weights.adapt import convert_preprocess
from resflax.weights.bridge import (
    Variables,
    flatten,
    from_torch,
    is_flat,
    unflatten,
    without_prefix,
)
from resflax.weights.files import SUFFIXES, Arrays, load_file
from resflax.weights.hub import fetch
from resflax.weights.imagenet import imagenet_classes
from resflax.weights.preprocess import default_preprocess
from resflax.weights.pretrained_config import PretrainedConfig, read_config, read_json
from resflax.weights.workdirs import is_workdir, read_workdir, split_checkpoint
from resflax.zoo import get_spec
from resflax.zoo.registry import SPECS, split_tag

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

Report = Callable[[str], None]


class Weights(NamedTuple):
    """Weights and what they are for.

    Attributes:
      config: architecture, preprocessing and class names.
      variables: variables in the tree of `scan=False`.
      source: one line that says what was read.
      is_flax: whether the arrays had resflax's names (`flatten`), not torch's.
      evaluation: of a run's checkpoint, see `RunWeights`; {} for others.
    """

    config: PretrainedConfig
    variables: Variables
    source: str
    is_flax: bool
    evaluation: dict[str, float]


class _Found(NamedTuple):
    """Arrays as they were found, the config that came with them, and a description.

    Attributes:
      is_own_record: whether the config was written by resflax, which records the class names of
        its models: without names, 1,000 classes are not those of ImageNet.
      evaluation: see `Weights`; None for other places than runs.
    """

    arrays: Arrays
    config: PretrainedConfig | None
    source: str
    is_own_record: bool = False
    evaluation: dict[str, float] | None = None


class Reader(NamedTuple):
    """Row of `READERS`: a kind of place.

    Attributes:
      matches: returns whether a name is of this kind.
      read: reads the arrays; takes the name, the revision and a function for messages.
    """

    matches: Callable[[str], Any]
    read: Callable[[str, str | None, Report], _Found]


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def read_weights(
    where: str | Path,
    name: str | Spec | None = None,
    *,
    revision: str | None = None,
    report: Report = _print_to_stderr,
) -> Weights:
    """Reads weights, with their architecture, preprocessing and class names.

    Images are normalized as `Weights.config.preprocess` says. For a run these are the run's own
    moments, for a config.json those that it has. A weights file without a config.json gets the
    default of its architecture, `default_preprocess`, which the caller may replace.

    Args:
      where: one of
        - the workdir of a run, also with a checkpoint: "runs/x", "runs/x@best", "runs/x@last",
          "runs/x@200"; by default the last one;
        - a folder in timm's or Transformers' layout;
        - a weights file, with `name` or a config.json in the same folder;
        - a Hub repository, "owner/name";
        - a name with one of timm's tags, "resnet50.a1_in1k", for the repository of that name.
      name: model name or spec; None to use that of the run or the config.json. The number of
        classes is always that of the weights.
      revision: branch, tag or commit of a repository.
      report: called with messages, such as about corrupt checkpoints that are skipped.

    Raises:
      UserError: if there are no weights, the model is unknown or the weights do not match it.
    """
    where, spec = str(where), None if name is None else get_spec(name)
    reader = next((reader for reader in READERS.values() if reader.matches(where)), None)
    if reader is None:
        raise UserError(_describe_invalid(where))
    found = reader.read(where, revision, report)
    found = found._replace(arrays=without_prefix(found.arrays))
    config, source = _complete_config(found, spec, where), found.source
    if found.config is None:
        mean, std = map(_format_moments, (config.preprocess.mean, config.preprocess.std))
        source += f"; default normalization of the architecture: mean {mean}, std {std}"
    if not config.spec.num_classes:
        source += "; no classification head"
    if config.spec.num_classes == IMAGENET_CLASSES and not (config.labels or found.is_own_record):
        config = config._replace(labels=imagenet_classes())
        source += "; class names of ImageNet-1k"
    is_flax = is_flat(found.arrays)
    convert = unflatten if is_flax else _from_torch_unrolled
    variables = convert(config.spec, found.arrays, channels=config.channels)
    return Weights(config, variables, source, is_flax, found.evaluation or {})


def _format_moments(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _from_torch_unrolled(spec: Spec, arrays: Arrays, *, channels: int) -> Variables:
    return from_torch(spec, arrays, channels=channels, scan=False)


def _read_run(where: str, revision: str | None, report: Report) -> _Found:
    del revision
    workdir = split_checkpoint(where)
    assert workdir is not None, where
    run = read_workdir(*workdir, report)
    return _Found(flatten(run.variables), run.config, run.source, True, run.evaluation)


def _read_folder(where: str, revision: str | None, report: Report) -> _Found:
    del revision
    folder = Path(where)
    return _read_with_config(load_file(folder, report=report), folder, where, "its config.json")


def _read_file(where: str, revision: str | None, report: Report) -> _Found:
    del revision
    arrays, folder = load_file(where, report=report), Path(where).parent
    if is_workdir(folder):  # its config.json is that of the run
        return _Found(arrays, None, where)
    return _read_with_config(arrays, folder, where, "the config.json next to it")


def _read_with_config(arrays: Arrays, folder: Path, where: str, config_name: str) -> _Found:
    if not (folder / "config.json").exists():
        return _Found(arrays, None, where)
    source = f"{where}; normalization of {config_name}"
    is_own_record = "resflax" in read_json(folder / "config.json")
    return _Found(arrays, read_config(folder), source, is_own_record)


def _read_repository(where: str, revision: str | None, report: Report) -> _Found:
    found = _read_folder(str(fetch(where, revision)), None, report)
    normalization = "; normalization of its config.json" if found.config else ""
    return found._replace(source=f"{where} from the Hub{normalization}")


def _is_repository(where: str) -> bool:
    # `runs/` is where runs are by default.
    is_path = where.startswith((".", "/", "~", "runs/")) or where.endswith(SUFFIXES)
    return where.count("/") == 1 and not is_path


def _is_tagged(where: str) -> bool:
    architecture, tag = split_tag(where)
    return bool(tag) and architecture in SPECS and not where.endswith(SUFFIXES)


READERS: dict[str, Reader] = {
    "run": Reader(split_checkpoint, _read_run),
    "folder": Reader(lambda where: Path(where).is_dir(), _read_folder),
    "file": Reader(lambda where: Path(where).exists(), _read_file),
    "repository": Reader(_is_repository, _read_repository),
    "tagged name": Reader(
        _is_tagged, lambda where, *args: _read_repository(f"timm/{where}", *args)
    ),
}


def _describe_invalid(where: str) -> str:
    if where.endswith(SUFFIXES):
        return f"file not found: {where}"
    message = f"{where} is not an existing file or folder, nor a Hub repository (owner/name)"
    architecture, tag = split_tag(where)
    if where in SPECS:
        return f"{message}: a model's name needs a tag, such as {where}.a1_in1k"
    if tag and "/" not in where:
        return f"{message}, nor a tagged name: {unknown('model', architecture, SPECS)}"
    return message


def _complete_config(found: _Found, spec: Spec | None, where: str) -> PretrainedConfig:
    """Returns the config with the given architecture, and the arrays' channels and classes.

    The number of classes in a config.json is not changed, as a mismatch is an error, unless the
    arrays have no head.
    """
    config, channels, classes = found.config, *_count_channels_and_classes(found.arrays)
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
        found.config,
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
