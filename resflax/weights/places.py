"""Kinds of places that weights are in, as a table: a run, a folder, a file, a Hub repository."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resflax.errors import Report, UserError, unknown
from resflax.files import expand_path
from resflax.nn import Spec
from resflax.weights.arrays import Arrays
from resflax.weights.bridge import flatten
from resflax.weights.file_kinds import FILE_SUFFIXES
from resflax.weights.files import load_file
from resflax.weights.hub import fetch
from resflax.weights.pretrained_config import PretrainedConfig, read_config, read_json
from resflax.weights.run_history import RunHistory
from resflax.weights.run_weights import read_networks
from resflax.weights.workdirs import is_workdir, split_checkpoint
from resflax.zoo.registry import SPECS, split_tag

# How timm writes names of repositories and folders.
SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")


class Found(NamedTuple):
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
      read: reads the arrays of each network; takes the arguments of `find_arrays`.
    """

    matches: Callable[[str], Any]
    read: Callable[[str, str | None, Report, Spec | None], Sequence[Found]]


def find_arrays(
    where: str, revision: str | None, report: Report, spec: Spec | None = None
) -> Sequence[Found]:
    """Reads the arrays of each network in a place.

    Args:
      where: name of the place; see `read_members`.
      revision: branch, tag or commit of a repository.
      report: called with messages.
      spec: the architecture, if the user named one: it has the functions that the place names.

    Raises:
      UserError: if there is no such place, or it has no weights.
    """
    reader = next((reader for reader in READERS.values() if reader.matches(where)), None)
    if reader is None:
        raise UserError(_describe_invalid(where))
    return reader.read(where, revision, report, spec)


def _read_run(where: str, revision: str | None, report: Report, spec: Spec | None) -> list[Found]:
    del revision
    name = split_checkpoint(where)
    assert name is not None, where
    return [
        Found(
            flatten(run.variables),
            run.config,
            run.source,
            True,
            run.evaluation,
            run.where,
            run.history,
        )
        for run in read_networks(name, report, spec)
    ]


def _read_folder(
    where: str, revision: str | None, report: Report, spec: Spec | None
) -> list[Found]:
    del revision
    arrays = load_file(Path(where), report=report)
    return [_read_with_config(arrays, Path(where), where, "its config.json", spec)]


def _read_file(where: str, revision: str | None, report: Report, spec: Spec | None) -> list[Found]:
    del revision
    arrays, folder = load_file(where, report=report), Path(where).parent
    if is_workdir(folder):  # its config.json is that of the run
        return [Found(arrays, None, where)]
    return [_read_with_config(arrays, folder, where, "the config.json next to it", spec)]


def _read_with_config(
    arrays: Arrays, folder: Path, where: str, config_name: str, spec: Spec | None
) -> Found:
    if not (folder / "config.json").exists():
        return Found(arrays, None, where)
    try:
        config = read_config(folder, spec)
        is_own_record = "resflax" in read_json(folder / "config.json")
    except UserError as e:
        return Found(arrays, None, where, problem=str(e), config_name=config_name)
    return Found(arrays, config, where, is_own_record, config_name=config_name)


def _read_repository(
    where: str, revision: str | None, report: Report, spec: Spec | None
) -> list[Found]:
    [found] = _read_folder(str(fetch(where, revision)), None, report, spec)
    return [found._replace(source=f"{where} from the Hub")]


def without_scheme(where: str) -> str:
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
