"""Datasets whose splits have names and lengths, as those of TFDS and Hugging Face."""

from collections.abc import Callable, Mapping
from typing import Any

from resflax.data.source import Source, SplitSources
from resflax.data.split_names import splits_by_name
from resflax.errors import UserError


def open_named_splits(
    name: str,
    lengths: Mapping[str, int],
    chosen: Mapping[str, str],
    open_split: Callable[[str, Any], Any],
) -> SplitSources:
    """Opens the splits of a dataset; a validation or test split without labels is not used.

    Args:
      name: name of the dataset, for messages.
      lengths: number of examples of each split.
      chosen: splits or expressions for some of "train", "validation" and "test".
      open_split: `(split, train) -> source`: opens a split or an expression; `train` is the
        training split, None to open that itself. A source of a whole split knows if it
        `has_labels`.

    Raises:
      UserError: if there is no training split, or a split cannot be used.
    """
    names = splits_by_name(name, lengths, chosen)
    train = open_split(names["train"], None)
    others: dict[str, Source | None] = {"validation": None, "test": None}
    for role in others:
        source = open_split(names[role], train) if names[role] else None
        if source and not chosen.get(role) and not source.has_labels:
            names, source = names | {role: ""}, None
        others[role] = source
    return SplitSources(train, others["validation"], others["test"], names, "")


def default_split(name: str, lengths: Mapping[str, int], sources: SplitSources) -> Any:
    """Returns the test split of a dataset, or else its validation split.

    Raises:
      UserError: if there is neither.
    """
    source = sources.test or sources.validation
    if source is None:
        splits = ", ".join(sorted(lengths))
        raise UserError(
            f"dataset {name!r} has the splits {splits}: expected test or validation; or choose a"
            " split"
        )
    return source
