"""Which examples of a dataset are for training, validation and testing."""

from typing import Any, NamedTuple

from resflax.data.held_out import hold_out
from resflax.data.kinds import open_splits
from resflax.data.location import Location
from resflax.data.source import Source, SplitSources
from resflax.data.split_names import SplitNames
from resflax.errors import UserError

# Share of the training split that is held out if a dataset has no other split with labels.
DEFAULT_HELD_OUT = 0.1


class SplitChoice(NamedTuple):
    """A user's choice of splits; "" and 0 leave it to `open_roles`.

    Attributes:
      train: the training split: a TFDS split expression, or the name of a folder.
      validation: the validation split.
      test: the test split.
      held_out: share of each class of the training split that is held out from training.
      seed: which examples these are.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    held_out: float = 0.0
    seed: int = 0

    @classmethod
    def from_config(cls, data: Any) -> "SplitChoice":
        """Returns the choice of a config.

        Args:
          data: `config.data`, or "data" of a run's config.json, which may lack keys.
        """
        return cls(
            train=data.get("train_split", ""),
            validation=data.get("validation_split", ""),
            test=data.get("test_split", ""),
            held_out=data.get("validation", 0.0),
            seed=data.get("validation_seed", 0),
        )


DEFAULT_CHOICE = SplitChoice()


class Roles(NamedTuple):
    """The examples for training, validation and testing.

    Attributes:
      train: the training examples, without held-out ones.
      validation: the examples that choose the best checkpoint; None if the test examples do.
      test: the test examples.
      names: names of the three.
      held_out: "validation" or "test" if these examples are held out from the training split.
      note: lines on what was found, for the user.
    """

    train: Source
    validation: Source | None
    test: Source
    names: SplitNames
    held_out: str
    note: str


def open_roles(location: Location, choice: SplitChoice) -> Roles:
    """Opens the examples of a dataset for training, validation and testing.

    A dataset with only one of a validation and a test split has a test split and no validation
    split. The share that is held out from the training split is the validation split, or the test
    split if there is no other one.

    Raises:
      UserError: if the dataset cannot be opened, or the choice does not fit it.
    """
    if choice.held_out and choice.validation:
        raise UserError(
            f"config.data.validation is {choice.held_out:g} and config.data.validation_split is"
            f" {choice.validation!r}: expected one of them"
        )
    chosen = {"train": choice.train, "validation": choice.validation, "test": choice.test}
    found = open_splits(location, chosen)
    names, validation, test = SplitNames(**found.names), found.validation, found.test
    if test is None:
        names = names._replace(validation="", test=names.validation)
        validation, test = None, validation
    if choice.held_out or test is None:
        return _with_held_out(found, names, test, choice)
    if choice.seed:
        raise UserError(
            f"config.data.validation_seed is {choice.seed}, but no examples are held out of the"
            " training split: set config.data.validation, or leave the seed out"
        )
    return Roles(found.train, validation, test, names, "", found.note)


def _with_held_out(
    found: SplitSources, names: SplitNames, test: Source | None, choice: SplitChoice
) -> Roles:
    """Holds out examples for validation, or for testing if there is no test split."""
    share = choice.held_out or DEFAULT_HELD_OUT
    train, held_out = hold_out(found.train, share, choice.seed, minimum=int(test is None))
    own = SplitNames(names.train + f", without held-out {share:g}", "", names.test)
    name = f"{names.train}, held-out {share:g}"
    if test is None:
        reason = f"no test split: {share:.0%} of each class of the training split are held out"
        return Roles(
            train, None, held_out, own._replace(test=name), "test", _join(found.note, reason)
        )
    reason = names.validation and f"the split {names.validation} is not used"
    note = _join(found.note, reason)
    return Roles(train, held_out, test, own._replace(validation=name), "validation", note)


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))
