"""The dataset of runs, and the training split as they divided it by `config.data.validation`."""

import argparse
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from resflax.data import load_split
from resflax.data.fake import is_fake
from resflax.data.fingerprint_diff import is_same_data
from resflax.data.held_out import SourceSubset
from resflax.data.kinds import FILE_PREFIXES
from resflax.data.location import FeatureKeys, Location
from resflax.data.roles import Roles, SplitChoice, open_roles
from resflax.data.source import Source
from resflax.errors import UserError
from resflax.weights.workdirs import split_checkpoint

NOT_A_RUN = "{where} is not the workdir of a run"
NO_VALIDATION = "the config of {where} has data.validation 0"


def own_config(wheres: Sequence[str], dataset: str = "") -> dict[str, Any]:
    """Returns the config of runs with one dataset, if that is the given one.

    Args:
      wheres: the runs.
      dataset: name of a dataset, which is that of the runs if its examples are those that the first
        of them recorded; "" is that of the runs.

    Returns:
      The config of the first run, with "seed", "data", "dtype" and the given "dataset" at least; {}
      if one of `wheres` is not a workdir, or they or the given one are different datasets.

    Raises:
      UserError: if a config.json cannot be read.
    """
    configs = [_read_config(where) for where in wheres]
    first = configs[0]
    if first is None or any(c is None or c["dataset"] != first["dataset"] for c in configs):
        return {}
    if dataset in ("", first["dataset"]):
        return first
    return first | {"dataset": dataset} if _has_moved(wheres[0], first, dataset) else {}


def _has_moved(where: str, config: dict[str, Any], dataset: str) -> bool:
    """Returns whether a dataset has the examples that a run was trained on, in other files."""
    prefix = next((p for p in FILE_PREFIXES if dataset.startswith(p)), "")
    if not prefix or dataset == config["dataset"] or not config["dataset"].startswith(prefix):
        return False
    from resflax.run.checkpoint import latest_valid_metadata  # imports Orbax

    found = split_checkpoint(where)
    assert found
    recorded = (latest_valid_metadata(found.folder / "checkpoints") or {}).get("data")
    if recorded is None:
        return False
    try:
        roles = _open_roles(config | {"dataset": dataset})
    except UserError:  # such as a folder without splits
        return False
    splits = {"train": roles.train, "validation": roles.validation, "test": roles.test}
    return is_same_data(recorded, {name: s for name, s in splits.items() if s is not None})


def _open_roles(config: dict[str, Any], data_dir: str = "") -> Roles:
    """Opens the dataset of a run as the run divided it."""
    data = config["data"]
    location = Location(
        config["dataset"],
        data_dir or data.get("data_dir", ""),
        data.get("on_bad_example", "raise"),
        config["seed"],
        FeatureKeys.from_config(data),
    )
    return open_roles(location, SplitChoice.from_config(data))


def open_source(
    args: argparse.Namespace, config: dict[str, Any], on_bad_example: str, **labels: Any
) -> Source:
    """Opens the split that a command line chooses.

    Args:
      args: with "dataset", "split" and the options of `add_reading_options`.
      config: made by `own_config`.
      on_bad_example: "raise" or "skip".
      **labels: arguments of `load_split` on files of labels.

    Raises:
      UserError: if it cannot be opened.
    """
    data = config.get("data", {})
    return load_split(
        args.dataset or config["dataset"],
        args.split,
        data_dir=args.data_dir or data.get("data_dir", ""),
        on_bad_example=on_bad_example,
        seed=config.get("seed", 0),
        splits=SplitChoice.from_config(data) if config else None,
        keys=FeatureKeys.from_config(data, args.image_key, args.label_key),
        **labels,
    )


def _read_config(where: str) -> dict[str, Any] | None:
    found = split_checkpoint(where)
    return None if found is None else read_run_config(found.folder)


def read_run_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a run.

    Raises:
      UserError: if it cannot be read, or lacks "dataset", "seed", "data" or "dtype".
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        return dict(config) | {key: config[key] for key in ("dataset", "seed", "data", "dtype")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder} has no valid config.json: {e}") from e


class TrainingSplit:
    """The training split of runs, in the two parts that `config.data.validation` makes.

    It is opened when a part is first needed.

    Args:
      config: made by `own_config`, with `data.validation` above 0.
      data_dir: directory of prepared TFDS datasets; "" for that of the config.
    """

    def __init__(self, config: dict[str, Any], data_dir: str = "") -> None:
        self.config, self.data, self.data_dir = config, config["data"], data_dir

    @cached_property
    def _roles(self) -> Roles:
        return _open_roles(self.config, self.data_dir)

    @property
    def tests_held_out(self) -> bool:
        """Whether the held-out examples are the test split of the runs."""
        return self._roles.held_out == "test"

    def trained(self) -> Source:
        """Returns the examples that the runs were trained on."""
        return self._roles.train

    def held_out(self) -> Source:
        """Returns the examples that the runs held out."""
        return self._roles.validation or self._roles.test

    def has_name(self, name: str) -> bool:
        """Returns whether a source with this name has the same examples."""
        whole = self._roles.train
        assert isinstance(whole, SourceSubset)
        # The name of a folder is its path.
        return Path(name).resolve() == Path(whole.source.name).resolve()


def find_training_split(
    wheres: Sequence[str], data_dir: str = "", dataset: str = ""
) -> TrainingSplit | str:
    """Returns the training split of runs that held out the same examples.

    Args:
      wheres: the runs.
      data_dir: see `TrainingSplit`.
      dataset: where the dataset of the runs has moved to; "" for its name in their configs.

    Returns:
      Why there is none, a clause that an error message can end with, where one of `wheres` is not
      a run, held out nothing, or held out other examples than another one.

    Raises:
      UserError: if a config.json cannot be read.
    """
    configs = [_read_config(where) for where in wheres]
    choices: dict[tuple[Any, ...], str] = {}
    for where, config in zip(wheres, configs, strict=True):
        if config is None:
            return NOT_A_RUN.format(where=where)
        if not config["data"].get("validation"):
            return NO_VALIDATION.format(where=where)
        choices.setdefault(_choice_of_examples(config, data_dir), where)
    if len(choices) > 1:
        first, second = list(choices.values())[:2]
        return f"{first} and {second} held out different examples (see config.data)"
    first_config = configs[0]
    assert first_config is not None
    return TrainingSplit(first_config | ({"dataset": dataset} if dataset else {}), data_dir)


def have_different_training_data(wheres: Sequence[str], data_dir: str = "") -> bool:
    """Returns whether some runs were trained on examples that others held out."""
    configs = [config for config in map(_read_config, wheres) if config]
    divided = [c["data"].get("validation") or c["data"].get("train_split") for c in configs]
    return any(divided) and len({_choice_of_examples(c, data_dir) for c in configs}) > 1


def _choice_of_examples(config: dict[str, Any], data_dir: str) -> tuple[Any, ...]:
    """Returns everything in a config that determines which examples are held out."""
    data, dataset = config["data"], config["dataset"]
    return (
        dataset,
        data.get("validation", 0.0),
        data.get("validation_seed", 0),
        data_dir or data.get("data_dir", ""),
        data.get("on_bad_example", "raise"),
        data.get("train_split", ""),
        config["seed"] if is_fake(dataset) else None,  # the noise depends on the seed
    )
