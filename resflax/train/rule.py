"""Rows of the tables of valid values, of invalid combinations, and of keys without effect."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resflax.errors import UserError

MAX_FLOAT = 3e38  # of float32, and less than infinity
MIN_FLOAT = 1.2e-38  # smaller numbers lose precision or become 0 in float32
MAX_SEED = 2**32 - 1
TYPE_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
}


class Rule(NamedTuple):
    """Valid values of a key, in words and as a test."""

    expected: str
    is_valid: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raises `UserError` if the value of the key `name` is not valid."""
        try:
            valid = self.is_valid(value)
        except TypeError:
            valid = False
        if not valid:
            raise UserError(f"{name} is {value!r}: expected {self.expected}")


# An invalid combination of keys, and its message, in which `{c}` is the config.
Combination = tuple[Callable[[ConfigDict], bool], str]


class Row(NamedTuple):
    """Keys that have no effect with some values of others.

    Attributes:
      keys: the keys.
      is_unused: returns whether they have no effect on the run of a config.
      reason: why, and what to do: the end of a sentence, in which `{c}` is the config.
    """

    keys: tuple[str, ...]
    is_unused: Callable[[ConfigDict], bool]
    reason: str


def check_combinations(combinations: Sequence[Combination], config: ConfigDict) -> None:
    """Raises `UserError` with the message of the first combination that a config has."""
    for is_invalid, message in combinations:
        if is_invalid(config):
            raise UserError(message.format(c=config))


POSITIVE = Rule("more than 0", lambda v: v > 0)
COUNT = Rule("1 to 2**31 - 1", lambda v: 0 < v < 2**31)
COUNT_OR_ZERO = Rule("0 to 2**31 - 1", lambda v: 0 <= v < 2**31)
NOT_NEGATIVE = Rule("0 or more", lambda v: v >= 0)
PROBABILITY = Rule("0 to 1", lambda v: 0 <= v <= 1)
LESS_THAN_ONE = Rule("0 to less than 1", lambda v: 0 <= v < 1)
SEED = Rule("0 to 2**32 - 1", lambda v: 0 <= v <= MAX_SEED)


def check_type(name: str, value: Any, kind: type) -> None:
    """Raises `UserError` if the value of the key `name` has another type, or is not in float32.

    An int is a valid float; a bool is neither.
    """
    if kind is type(None):  # a placeholder, whose type ml_collections checks
        return
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise UserError(f"{name} is {value!r}: expected {TYPE_NAMES[kind]}")
    if kind is float and value and not MIN_FLOAT < abs(value) < MAX_FLOAT:  # nor NaN
        raise UserError(f"{name} is {value!r}: expected a number in the range of float32")
