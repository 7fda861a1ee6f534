"""Names of the splits of datasets, and which of them are for training, validation and testing."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from resflax.errors import UserError

# Names of the splits for each purpose, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class SplitNames(NamedTuple):
    """Names of the splits that a run uses.

    Attributes:
      train: the training split.
      validation: the split that is evaluated during training; "" if that is the test split.
      test: the test split.
    """

    train: str = "train"
    validation: str = ""
    test: str = "test"


def splits_by_name(dataset: str, names: Iterable[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Returns which splits are "train", "validation" and "test", by their names; "" for none.

    Args:
      dataset: name of the dataset, for messages.
      names: names of all splits.
      chosen: splits that are given for some of the three.

    Raises:
      UserError: if there is no training split, or several splits could be the same.

    >>> splits_by_name("x", ["train", "valid"], {})
    {'train': 'train', 'validation': 'valid', 'test': ''}
    """
    names, found = sorted(names), dict[str, str]()
    for role, usual in SPLIT_NAMES.items():
        candidates = [name for name in names if name.lower() in usual]
        if len(candidates) > 1 and role in candidates:
            candidates = [role]
        if len(candidates) > 1 and not chosen.get(role):
            raise UserError(
                f"dataset {dataset!r} has the splits {' and '.join(candidates)}, which could both"
                f" be the {role} split: choose with --config.data.{role}_split={candidates[0]}"
            )
        found[role] = chosen.get(role) or (candidates[0] if candidates else "")
    if not found["train"]:
        raise UserError(
            f"dataset {dataset!r} has the splits {', '.join(names)}, no training split: choose one"
            f" with --config.data.train_split={names[0] if names else 'NAME'}"
        )
    return found


def role_of_split(name: str) -> str:
    """Returns "train", "validation" or "test" for a usual name of such a split; else ""."""
    return next((role for role, usual in SPLIT_NAMES.items() if name.lower() in usual), "")
