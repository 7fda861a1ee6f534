"""Checks of the values in rows of the user's own, such as the kernels of a block's convolutions."""

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from resflax.errors import UserError
from resflax.nn.antialias import AntiAlias
from resflax.nn.blocks import ConvRow
from resflax.nn.convs import ConvKind
from resflax.nn.functions import describe
from resflax.nn.gates import Gate
from resflax.nn.norms import NormRow
from resflax.nn.shortcuts import ShortcutRow
from resflax.nn.stems import Stem, StemConv


class Value(NamedTuple):
    """What an attribute of a row can be.

    Attributes:
      is_valid: `(value, dimensions) -> whether it is one of them`.
      expected: the values, in words.
    """

    is_valid: Callable[[Any, int], bool]
    expected: str


def _is_number(value: Any, minimum: float) -> bool:
    return isinstance(value, int | float | Fraction) and value >= minimum


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _per_axis(is_valid: Callable[[Any], bool]) -> Callable[[Any, int], bool]:
    """Makes a check of one value, or of a tuple with one per dimension."""

    def check(value: Any, dimensions: int) -> bool:
        return all(map(is_valid, value if isinstance(value, tuple) and value else (value,)))

    return check


FLAG = Value(lambda value, _: isinstance(value, bool), "True or False")
POSITIVE = Value(lambda value, _: _is_positive(value), "a positive integer")
# An even kernel cannot have the same padding on both sides.
KERNEL = Value(
    _per_axis(lambda value: _is_positive(value) and value % 2 == 1),
    "an odd integer, or a tuple with one per dimension",
)
STRIDE = Value(
    lambda value, dimensions: (
        _per_axis(_is_positive)(value, dimensions)
        and (isinstance(value, int) or len(value) == dimensions)
    ),
    "a positive integer, or a tuple with one per dimension",
)
VALUES: dict[type, Mapping[str, Value]] = {
    ConvRow: {
        "kernel": KERNEL,
        "expansion": Value(
            lambda value, _: value is None or _is_positive(value), "a positive integer or None"
        ),
        "strided": FLAG,
        "grouped": FLAG,
        "divisor": POSITIVE,
        "factored": FLAG,
    },
    StemConv: {
        "kernel": KERNEL,
        "stride": STRIDE,
        "width_fraction": Value(
            lambda value, _: _is_number(value, 0.0) and value > 0, "a fraction above 0"
        ),
    },
    Stem: {
        "convs": Value(
            lambda value, _: (
                isinstance(value, tuple) and all(isinstance(conv, StemConv) for conv in value)
            ),
            "a tuple of StemConv",
        ),
    },
    ShortcutRow: {"always": FLAG},
    Gate: {
        "is_random": FLAG,
        "factors": Value(
            lambda value, _: value is None or callable(value), "a function (arrays) -> Factors"
        ),
        "alpha": Value(
            lambda value, _: value is None or _is_number(value, 0.0),
            "a number from 0 or None",
        ),
    },
    NormRow: {"has_activation": FLAG, "channel_multiple": POSITIVE},
    AntiAlias: {},
    ConvKind: {
        "epsilon": Value(
            lambda value, _: value is None or _is_number(value, 0.0), "a number from 0 or None"
        ),
        "has_gain": FLAG,
    },
}


def check_row_values(field: str, row: Any, dimensions: int) -> None:
    """Checks the values of a row, and of the rows in it.

    Raises:
      UserError: if one is invalid.

    >>> check_row_values("block", (ConvRow(3, strided=True), ConvRow(4)), 2)
    Traceback (most recent call last):
    ...
    resflax.errors.UserError: block has ConvRow(kernel=4) with kernel 4: expected an odd integer, \
or a tuple with one per dimension
    """
    for part in _rows_in(row):
        for name, value in VALUES[type(part)].items():
            given = getattr(part, name)
            if not value.is_valid(given, dimensions):
                raise UserError(
                    f"{field} has {describe(part)} with {name} {describe(given)}: expected"
                    f" {value.expected}"
                )
    if isinstance(row, Stem) and not row.function and not (row.convs and row.convs[-1][2] == 1):
        raise UserError(
            f"{field} is {describe(row)}: expected one StemConv or more, the last with"
            " width_fraction 1, or a function"
        )
    if isinstance(row, ConvKind) and row.has_gain and row.epsilon is None:
        raise UserError(f"{field} is {describe(row)}: a gain needs an epsilon, such as 1e-5")
    if isinstance(row, NormRow) and not row.make and not row.function:
        raise UserError(f"{field} is {describe(row)}: expected make or function")


def _rows_in(row: Any) -> Iterator[Any]:
    if type(row) in VALUES:
        yield row
    if isinstance(row, tuple):
        for part in row:
            yield from _rows_in(part)
