"""The one error that users cause and users can mend."""

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn


class UserError(ValueError):
    """A bad name, value or place: one line that says what was found and what would be right."""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """An error for a `name` that is not among the `known` ones, listing the nearest of them.

    >>> print(unknown("shortcut", "b", ["A", "B", "C", "none"]))
    unknown shortcut 'b': expected one of A, B, C, none
    >>> print(unknown("letter", "omegga", "alpha beta gamma delta epsilon eta mu nu omega".split()))
    unknown letter 'omegga': did you mean omega?
    """
    known = list(known)
    if len(known) <= 8:
        return UserError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    # The nearest even if none is near: a user who is lost wants names.
    near = difflib.get_close_matches(str(name).lower(), known, n=5, cutoff=0.5)
    near = near or difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.0)
    return UserError(f"unknown {what} {name!r}: did you mean {', '.join(near)}?")


class Parser(argparse.ArgumentParser):
    """Argparse's, for which what it cannot understand is a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(f"{message} (--help tells what there is)")
