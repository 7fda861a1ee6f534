"""How many examples `on_bad_example="skip"` may leave out: single ones, not most of a class."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from resflax.data.source import Source
from resflax.errors import UserError

# Share of the examples of a class.
MAX_SKIPPED = 0.1


def is_too_many(skipped: int, total: int) -> bool:
    """Returns whether a class loses all its examples, or more than one and than `MAX_SKIPPED`.

    >>> is_too_many(1, 5), is_too_many(2, 20), is_too_many(3, 20), is_too_many(1, 1)
    (False, False, True, True)
    """
    return skipped > 0 and (skipped == total or skipped > max(1, MAX_SKIPPED * total))


def check_skipped(
    source: Source,
    skipped: Mapping[int, str],
    remaining_labels: Int[np.ndarray, " remaining"] | None = None,
) -> None:
    """Checks that skipping leaves most of the examples of each class.

    Args:
      source: the split. If its labels are unknown, the examples of all classes count together.
      skipped: the skipped examples, by index: where each is, and why.
      remaining_labels: labels of all other examples, if they have been read.

    Raises:
      UserError: if a class has lost too many examples.
    """
    known = source.labels()
    labels = np.zeros(len(source), np.int64) if known is None else known
    lost, totals = np.bincount(labels[list(skipped)], minlength=1), np.bincount(labels)
    for label in np.flatnonzero(lost):
        total = int(totals[label])
        if is_too_many(int(lost[label]), total):
            of_class = "" if known is None else f" of class {source.classes[label]!r}"
            reason = next(line for i, line in skipped.items() if labels[i] == label)
            raise UserError(
                f"{source.name}: {lost[label]} of {total} examples{of_class} cannot be used, too"
                f" many to skip them ({reason}): fix or remove them"
            )
    if known is None and skipped and remaining_labels is not None:
        missing = sorted({*range(len(source.classes))} - {*remaining_labels.tolist()})
        if missing:
            raise UserError(
                f"{source.name}: after skipping {len(skipped)} examples, class"
                f" {source.classes[missing[0]]!r} has none ({next(iter(skipped.values()))}): fix"
                " them"
            )
