"""The data of `resflax evaluate` besides the split: held-out training data, other datasets."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resflax.cli.evaluate_corruptions import CORRUPTED_PREFIX
from resflax.data import load_split
from resflax.data.array_source import ArraySource
from resflax.data.datasets import FOLDER_PREFIX, folder_errors_as_user_error
from resflax.data.flat_folder import open_unlabeled_folder
from resflax.data.held_out import SourceSubset, held_out_source
from resflax.data.in_memory import read_all
from resflax.data.source import Source
from resflax.errors import UserError
from resflax.evaluate.calibrated import MAX_EXAMPLES
from resflax.evaluate.classes import LabelMap, make_label_map
from resflax.weights import Weights
from resflax.weights.workdirs import split_checkpoint


class HeldOutData(NamedTuple):
    """Examples of the training split that no member was trained on.

    Attributes:
      source: the examples, at most `MAX_EXAMPLES`.
      label_map: the classes that count, those of the evaluation.
      on_bad_example: "raise" or "skip", as in training.
    """

    source: Source
    label_map: LabelMap
    on_bad_example: str


def own_dataset(wheres: Sequence[str]) -> dict[str, Any] | None:
    """Returns the part of the runs' config that describes their dataset.

    Returns:
      "dataset", "seed", "data" and "dtype" of the first run; None if one of `wheres` is not a
      workdir, or they have different datasets.

    Raises:
      UserError: if a config.json cannot be read.
    """
    configs = [_read_config(where) for where in wheres]
    first = configs[0]
    if first is None or any(c is None or c["dataset"] != first["dataset"] for c in configs):
        return None
    return first


def _read_config(where: str) -> dict[str, Any] | None:
    found = split_checkpoint(where)
    if found is None:
        return None
    try:
        config = json.loads((found.folder / "config.json").read_text())
        return {key: config[key] for key in ("dataset", "seed", "data", "dtype")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{found.folder} has no valid config.json: {e}") from e


def open_held_out(
    args: argparse.Namespace, members: Sequence[Weights], valid_labels: Sequence[str]
) -> HeldOutData | None:
    """Opens the training data that all runs held out by `data.validation`.

    Returns:
      None if there are none, or calibration is not to use them.

    Raises:
      UserError: if there are none and they are needed; or if they cannot be opened.
    """
    problem = _why_nothing_is_held_out(args.where)
    if problem and (args.select or args.calibrate == "held-out"):
        option = f"--select={args.select}" if args.select else "--calibrate=held-out"
        raise UserError(
            f"{option} needs held-out training data, but {problem}: train with"
            " --config.data.validation=0.1"
        )
    if problem or args.calibrate in ("none", "test"):
        return None
    config = own_dataset(args.where)
    assert config is not None
    data = config["data"]
    train = load_split(
        config["dataset"],
        "train",
        data_dir=args.data_dir or data["data_dir"],
        on_bad_example=data["on_bad_example"],
        seed=config["seed"],
    )
    if not data["image_size"] and not isinstance(train, ArraySource):
        split = read_all(train, channels=data["channels"], on_bad_example=data["on_bad_example"])
        train = ArraySource(train.name, split, train.classes)
    source = held_out_source(train, data["validation"], data["validation_seed"])
    if len(source) > MAX_EXAMPLES:
        indices = np.linspace(0, len(source) - 1, MAX_EXAMPLES).astype(int)
        source = SourceSubset(source, indices, source.name)
    first = members[0].config
    label_map = make_label_map(first.labels, first.spec.num_classes, source, valid_labels)
    return HeldOutData(source, label_map, data["on_bad_example"])


def _why_nothing_is_held_out(wheres: Sequence[str]) -> str:
    """Returns why the runs have no common held-out data; "" if they have."""
    configs = [_read_config(where) for where in wheres]
    held_out = set()
    for where, config in zip(wheres, configs, strict=True):
        if config is None:
            return f"{where} is not the workdir of a run"
        data = config["data"]
        if not data.get("validation"):
            return f"the config of {where} has data.validation 0"
        held_out.add((config["dataset"], data["validation"], data["validation_seed"]))
    return "the runs held out different examples" if len(held_out) > 1 else ""


def open_ood(args: argparse.Namespace) -> dict[str, Source]:
    """Opens the other datasets, whose images are to be detected among those of the split.

    Raises:
      UserError: if one cannot be opened.
    """
    names = [name for name in args.ood if not name.startswith(CORRUPTED_PREFIX)]
    return {name: _open_unlabeled(name, args) for name in names}


def _open_unlabeled(name: str, args: argparse.Namespace) -> Source:
    """Opens a dataset whose labels are not used, also a folder of images without class folders."""
    if name.startswith(FOLDER_PREFIX):
        path = name.removeprefix(FOLDER_PREFIX)
        with folder_errors_as_user_error(path):
            source = open_unlabeled_folder(Path(path).expanduser())
        if len(source):
            return source
    on_bad_example = args.on_bad_example or "raise"
    return load_split(name, data_dir=args.data_dir, on_bad_example=on_bad_example)


def unlabeled(source: Source, columns: LabelMap) -> LabelMap:
    """Returns a label map that counts all examples, whatever their class."""
    labels = np.zeros(max(1, len(source.classes)), np.int64)
    return LabelMap(columns.columns, labels, columns.names)
