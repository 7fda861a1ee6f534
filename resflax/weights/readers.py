"""Reads weights by where they are: a run, a folder, a file, a Hub repository."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from resflax.data.class_names import IMAGENET_CLASSES
from resflax.errors import UserError, unknown
from resflax.files import expand_path
from resflax.nn import Spec
from resflax.weights.arrays import Arrays
from resflax.weights.bridge import (
    Variables,
    flatten,
    from_torch,
    is_flat,
    unflatten,
)
from resflax.weights.complete_config import complete_config
from resflax.weights.file_kinds import FILE_SUFFIXES
from resflax.weights.files import load_file
from resflax.weights.hub import fetch
from resflax.weights.imagenet import imagenet_classes
from resflax.weights.prefixes import strip_prefixes
from resflax.weights.pretrained_config import PretrainedConfig, read_config, read_json
from resflax.weights.report import Report, print_to_stderr
from resflax.weights.run_history import RunHistory
from resflax.weights.run_weights import read_networks
from resflax.weights.shapes import variable_shapes
from resflax.weights.workdirs import is_workdir, split_checkpoint
from resflax.zoo import get_spec
from resflax.zoo.registry import SPECS, split_tag

# How timm writes names of repositories and folders.
SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


class Weights(NamedTuple):
    """Weights and what they are for.

    Attributes:
      config: architecture, preprocessing and class names.
      variables: variables in the tree of `scan=False`.
      source: one line that says what was read.
      is_flax: whether the arrays had resflax's names (`flatten`), not torch's.
      evaluation: of a run's checkpoint, see `RunWeights`; {} for others.
      where: name of this network alone: for the members of a run's ensemble, "runs/x#2".
      history: how a run trained it; None for others.
    """

    config: PretrainedConfig
    variables: Variables
    source: str
    is_flax: bool
    evaluation: dict[str, float]
    where: str
    history: RunHistory | None = None


class _Found(NamedTuple):
    """Arrays as they were found, the config that came with them, and a description.

    Attributes:
      is_own_record: whether the config was written by resflax, which records the class names of
        its models: without names, 1,000 classes are not those of ImageNet.
      evaluation, where, history: see `Weights`; None for other places than runs.
      problem: why the config.json next to the arrays is not read; "" if it is, or there is none.
      config_name: what messages call it; "" if there is none.
    """

    arrays: Arrays
    config: PretrainedConfig | None
    source: str
    is_own_record: bool = False
    evaluation: dict[str, float] | None = None
    where: str | None = None
    history: RunHistory | None = None
    problem: str = ""
    config_name: str = ""


class Reader(NamedTuple):
    """Row of `READERS`: a kind of place.

    Attributes:
      matches: returns whether a name is of this kind.
      read: reads the arrays of each network; takes the name, the revision and a function for
        messages.
    """

    matches: Callable[[str], Any]
    read: Callable[[str, str | None, Report], Sequence[_Found]]


def read_weights(
    where: str | Path,
    name: str | Spec | None = None,
    *,
    revision: str | None = None,
    report: Report = print_to_stderr,
) -> Weights:
    """Reads the weights of one network, with their architecture, preprocessing and class names.

    Images are normalized as `Weights.config.preprocess` says. For a run these are the run's own
    moments, for a config.json those that it has. A weights file without a config.json gets the
    default of its architecture, `default_preprocess`, which the caller may replace.

    Args:
      where: one of
        - the workdir of a run, also with a checkpoint: "runs/x", "runs/x@best", "runs/x@last",
          "runs/x@200"; by default the last one; for an ensemble with the index of a member,
          "runs/x#2" or "runs/x@best#2";
        - a folder in timm's or Transformers' layout;
        - a weights file, with `name` or a config.json in the same folder;
        - a Hub repository, "owner/name";
        - a name with one of timm's tags, "resnet50.a1_in1k", for the repository of that name.
      name: model name or spec; None to use that of the run or the config.json. The number of
        classes is always that of the weights.
      revision: branch, tag or commit of a repository.
      report: called with messages, such as about corrupt checkpoints that are skipped.

    Raises:
      UserError: if there are no weights, they are those of several networks, the model is unknown
        or the weights do not match it.
    """
    members = read_members(where, name, revision=revision, report=report)
    if len(members) > 1:
        raise UserError(
            f"{where} is an ensemble of {len(members)} networks, and one network is needed:"
            f" expected one of its members, such as {members[0].where}"
        )
    return members[0]


def read_members(
    where: str | Path,
    name: str | Spec | None = None,
    *,
    revision: str | None = None,
    report: Report = print_to_stderr,
) -> tuple[Weights, ...]:
    """Reads the weights of every network that `where` names.

    Args:
      where: as in `read_weights`, and also the workdir of an ensemble (all members that have not
        diverged: "runs/x", "runs/x@best"), some of its members ("runs/x#0,2"), and several
        checkpoints of a run ("runs/x@100,200", or "runs/x@last:3" for the last three).
      name: as in `read_weights`.
      revision: as in `read_weights`.
      report: as in `read_weights`; also called for members that are left out.

    Returns:
      One entry per network, with its variables; by checkpoint, then by member.

    Raises:
      UserError: if there are no weights, a checkpoint or member does not exist or is named twice,
        the model is unknown or the weights do not match it.
    """
    where, spec = _without_scheme(str(where)), None if name is None else get_spec(name)
    reader = next((reader for reader in READERS.values() if reader.matches(where)), None)
    if reader is None:
        raise UserError(_describe_invalid(where))
    found = reader.read(where, revision, report)
    return tuple(_make_weights(network, spec, where) for network in found)


def _make_weights(found: _Found, spec: Spec | None, where: str) -> Weights:
    """Converts arrays to variables, and completes their config.

    Raises:
      UserError: if the model is unknown or the arrays do not match it.
    """
    if found.problem and spec is None:
        raise UserError(
            f"{found.problem}: expected the config.json of the weights, or the model's name"
            " (--model NAME, or --config.model=NAME in training), with which it is not read"
        )
    if found.config and spec and not _have_equal_parameters(found.config.spec, spec):
        found = found._replace(config=None, problem="it is that of another network")
    with _named_errors(where):
        stripped = strip_prefixes(found.arrays)
        arrays = stripped.arrays
        config, source = complete_config(found.config, arrays, spec, where), found.source
        is_flax = is_flat(arrays)
        convert = unflatten if is_flax else _from_torch_unrolled
        variables = convert(config.spec, arrays, channels=config.channels)
    if found.problem:
        source += f"; {found.config_name} is that of something else, and not used"
    elif found.config_name:
        source += f"; normalization of {found.config_name}"
    if description := str(stripped):
        source += f"; {description}"
    if found.config is None:
        mean, std = map(_format_moments, (config.preprocess.mean, config.preprocess.std))
        source += f"; default normalization of the architecture: mean {mean}, std {std}"
    if not config.spec.num_classes:
        source += "; no classification head"
    if config.spec.num_classes == IMAGENET_CLASSES and not (config.labels or found.is_own_record):
        config = config._replace(labels=imagenet_classes())
        source += "; class names of ImageNet-1k"
    return Weights(
        config,
        variables,
        source,
        is_flax,
        found.evaluation or {},
        found.where or where,
        found.history,
    )


def _have_equal_parameters(spec: Spec, other: Spec) -> bool:
    """Returns whether two specs are of one network, whatever its classes and regularization are."""
    specs = [x.override(num_classes=0, drop_path=0.0, dropout=0.0) for x in (spec, other)]
    return specs[0] == specs[1] or variable_shapes(specs[0]) == variable_shapes(specs[1])


@contextmanager
def _named_errors(where: str) -> Iterator[None]:
    """Adds the name of the weights to errors."""
    try:
        yield
    except UserError as e:
        raise e if where in str(e) else UserError(f"{where}: {e}") from e


def _format_moments(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _from_torch_unrolled(spec: Spec, arrays: Arrays, *, channels: int) -> Variables:
    return from_torch(spec, arrays, channels=channels, scan=False)


def _read_run(where: str, revision: str | None, report: Report) -> list[_Found]:
    del revision
    name = split_checkpoint(where)
    assert name is not None, where
    return [
        _Found(
            flatten(run.variables),
            run.config,
            run.source,
            True,
            run.evaluation,
            run.where,
            run.history,
        )
        for run in read_networks(name, report)
    ]


def _read_folder(where: str, revision: str | None, report: Report) -> list[_Found]:
    del revision
    folder = Path(where)
    return [_read_with_config(load_file(folder, report=report), folder, where, "its config.json")]


def _read_file(where: str, revision: str | None, report: Report) -> list[_Found]:
    del revision
    arrays, folder = load_file(where, report=report), Path(where).parent
    if is_workdir(folder):  # its config.json is that of the run
        return [_Found(arrays, None, where)]
    return [_read_with_config(arrays, folder, where, "the config.json next to it")]


def _read_with_config(arrays: Arrays, folder: Path, where: str, config_name: str) -> _Found:
    if not (folder / "config.json").exists():
        return _Found(arrays, None, where)
    try:
        config = read_config(folder)
        is_own_record = "resflax" in read_json(folder / "config.json")
    except UserError as e:
        return _Found(arrays, None, where, problem=str(e), config_name=config_name)
    return _Found(arrays, config, where, is_own_record, config_name=config_name)


def _read_repository(where: str, revision: str | None, report: Report) -> list[_Found]:
    [found] = _read_folder(str(fetch(where, revision)), None, report)
    return [found._replace(source=f"{where} from the Hub")]


def _without_scheme(where: str) -> str:
    """Returns a name without timm's prefixes of the Hub and of folders, and with "~" expanded."""
    for scheme in SCHEMES:
        where = where.removeprefix(scheme)
    return expand_path(where)


def _is_repository(where: str) -> bool:
    # `runs/` is where runs are by default.
    is_path = where.startswith((".", "/", "~", "runs/")) or where.endswith(FILE_SUFFIXES)
    return where.count("/") == 1 and not is_path


def _is_tagged(where: str) -> bool:
    architecture, tag = split_tag(where)
    return bool(tag) and architecture in SPECS and not where.endswith(FILE_SUFFIXES)


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
    if where.endswith(FILE_SUFFIXES):
        return f"file not found: {where}"
    message = f"{where} is not an existing file or folder, nor a Hub repository (owner/name)"
    architecture, tag = split_tag(where)
    if where in SPECS:
        return f"{message}: a model's name needs a tag, such as {where}.a1_in1k"
    if tag and "/" not in where:
        return f"{message}, nor a tagged name: {unknown('model', architecture, SPECS)}"
    return f"{message}, nor a tagged name, such as resnet50.a1_in1k"
