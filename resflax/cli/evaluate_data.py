"""The data of `resflax evaluate` besides the split: held-out training data, other datasets."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resflax.cli.evaluate_corruptions import CORRUPTED_PREFIX
from resflax.cli.run_data import TrainingSplit
from resflax.data import load_split
from resflax.data.flat_folder import open_unlabeled_folder
from resflax.data.held_out import SourceSubset
from resflax.data.kinds import FOLDER_PREFIX, folder_errors_as_user_error
from resflax.data.source import Source
from resflax.errors import UserError
from resflax.evaluate.calibrated import MAX_EXAMPLES
from resflax.evaluate.classes import LabelMap, make_label_map
from resflax.files import user_path
from resflax.weights import Weights

# Names that `--ood` takes.
OOD_NAMES = (
    "digits, a prepared TFDS dataset, folder:PATH, corrupted:NAME:SEVERITY or"
    " fake:HEIGHTxWIDTHxCHANNELS:CLASSES:EXAMPLES"
)


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


def open_held_out(
    args: argparse.Namespace,
    training: TrainingSplit | str,
    members: Sequence[Weights],
    valid_labels: Sequence[str],
) -> HeldOutData | None:
    """Opens the training data that all runs held out by `data.validation`.

    Args:
      args: the arguments of the command.
      training: made by `find_training_split`.
      members: the networks.
      valid_labels: see `make_label_map`.

    Returns:
      None if there are none, or calibration is not to use them.

    Raises:
      UserError: if there are none and they are needed; or if they cannot be opened.
    """
    if not isinstance(training, str) and training.tests_held_out:
        training = "the held-out examples are the test split, as there is no other one"
    if isinstance(training, str) and (args.select or args.calibrate == "held-out"):
        option = f"--select={args.select}" if args.select else "--calibrate=held-out"
        raise UserError(
            f"{option} needs held-out training data, but {training}: train with"
            " --config.data.validation=0.1"
        )
    if isinstance(training, str) or args.calibrate in ("none", "test"):
        return None
    source = training.held_out()
    if len(source) > MAX_EXAMPLES:
        indices = np.linspace(0, len(source) - 1, MAX_EXAMPLES).astype(int)
        source = SourceSubset(source, indices, source.name)
    first = members[0].config
    label_map = make_label_map(first.labels, first.spec.num_classes, source, valid_labels)
    return HeldOutData(source, label_map, training.data["on_bad_example"])


def without_held_out_examples(
    args: argparse.Namespace, source: Source, training: TrainingSplit | str
) -> Source:
    """Returns a split to evaluate; of the runs' training split, what they were trained on.

    Otherwise calibration would be measured on examples that it was fitted to.

    Args:
      args: the arguments of the command.
      source: the split.
      training: made by `find_training_split`.
    """
    uses_held_out = args.calibrate not in ("none", "test")
    if isinstance(training, str) or not (uses_held_out or args.split == "train"):
        return source
    return training.trained() if training.has_name(source.name) else source


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
            source = open_unlabeled_folder(user_path(path, "--ood"))
        if len(source):
            return source
    on_bad_example = args.on_bad_example or "raise"
    try:
        return load_split(name, data_dir=args.data_dir, on_bad_example=on_bad_example)
    except UserError as e:
        if ":" in name:
            raise
        raise UserError(f"--ood: {e}; it takes {OOD_NAMES}") from e


def unlabeled(source: Source, columns: LabelMap) -> LabelMap:
    """Returns a label map that counts all examples, whatever their class."""
    labels = np.zeros(max(1, len(source.classes)), np.int64)
    return LabelMap(columns.columns, labels, columns.names)
