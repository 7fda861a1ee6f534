"""Errors that the user can fix, and how the command line reports them."""

import argparse
import difflib
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

# Called with a message, such as on what was read.
Report = Callable[[str], None]


class UserError(ValueError):
    """Invalid name, value or path. One line: what was given, what is valid, what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    r"""Returns text of one line that UTF-8 can encode, as file names need not be.

    Bytes that are not UTF-8 and control characters become backslash escapes.

    >>> print(printable("caf\udce9\n.png"))
    caf\xe9\n.png
    """
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # a byte of a file name, as `os.fsdecode` returns it
        return f"\\x{ord(c) - 0xDC00:02x}"
    return repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Returns the error for a `name` that is not in `known`, with the closest valid names.

    >>> print(unknown("shortcut", "b", ["A", "B", "C", "none"]))
    unknown shortcut 'b': expected one of A, B, C, none
    >>> print(unknown("letter", "omegga", "alpha beta gamma delta epsilon eta mu nu omega".split()))
    unknown letter 'omegga': did you mean omega?
    """
    return UserError(f"unknown {kind} {name!r}: {suggest(name, known)}")


def suggest(name: object, known: Iterable[str]) -> str:
    """Returns the end of an error message: the `known` names, or those closest to `name`."""
    known = list(known)
    every = f"expected one of {', '.join(known)}"
    if len(known) <= 8:
        return every
    text = str(name).lower()
    longer = sorted((k for k in known if len(text) > 3 and k.startswith(text)), key=len)
    close = difflib.get_close_matches(text, known, n=5, cutoff=0.6)
    if similar := list(dict.fromkeys([*longer[:2], *close]))[:5]:
        return f"did you mean {', '.join(similar)}?"
    if len(every) <= 120:
        return every
    # Some names even if none is similar: the user needs to see what names look like.
    return f"expected one such as {', '.join(difflib.get_close_matches(text, known, 3, 0.0))}"


def first_names(names: Iterable[object], maximum: int = 3, separator: str = ", ") -> str:
    """Returns the first names, and how many more there are.

    >>> first_names("abcd")
    'a, b, c and 1 more'
    """
    texts = [*map(str, names)]
    more = len(texts) - maximum
    return separator.join(texts[:maximum]) + (f" and {more} more" if more > 0 else "")


def print_to_stderr(text: str) -> None:
    """Prints a message that is not part of a command's output."""
    print(text, file=sys.stderr)


def quantity(number: int, noun: str) -> str:
    """Returns a number and a noun, which gets an s unless the number is 1.

    >>> quantity(1, "device"), quantity(8, "device")
    ('1 device', '8 devices')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises `UserError` instead of exiting.

    Options can be spelled with - or _.

    >>> parser = Parser()
    >>> _ = parser.add_argument("--batch-size", type=int)
    >>> parser.parse_args(["--batch_size=8"])
    Namespace(batch_size=8)
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses a command line; see `argparse`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._with_own_spelling(w) for w in words], namespace)

    def _with_own_spelling(self, word: str) -> str:
        name, equals, value = word.partition("=")
        options = {option.replace("_", "-"): option for option in self._option_string_actions}
        return options.get(name.replace("_", "-"), name) + equals + value

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(f"{message} (see --help)")
