"""Checks and conversions of the values of a spec's fields."""

from collections.abc import Mapping
from typing import Any

from resflax.errors import UserError, unknown


def check_integer(name: str, value: object, minimum: int, maximum: int) -> None:
    """Raises `UserError` if `value` is not an integer from `minimum` to `maximum`."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not minimum <= value <= maximum:  # type: ignore[operator]
        raise UserError(f"{name} is {value!r}: expected an integer from {minimum} to {maximum}")


def check_number(name: str, value: object, minimum: float, maximum: float) -> None:
    """Raises `UserError` if `value` is not a number from `minimum` to `maximum`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not minimum <= value <= maximum:  # type: ignore[operator]
        raise UserError(f"{name} is {value!r}: expected a number from {minimum} to {maximum}")


def check_name(field: str, value: object, table: Mapping[str, Any]) -> None:
    """Raises `UserError` if `value` is not a key of `table`."""
    if not isinstance(value, str) or value not in table:
        raise unknown(field, value, table)


def nested_lengths(nested: Any) -> Any:
    """Returns the lengths of the sequences two levels down; None if the nesting is wrong.

    >>> nested_lengths((((8, 8), (8, 8)), ((16, 16, 32),)))
    [[2, 2], [3]]
    """
    try:
        return [[len(item) for item in row] for row in nested]
    except TypeError:
        return None


def to_tuples(value: Any) -> Any:
    """Returns nested lists as nested tuples."""
    return tuple(to_tuples(item) for item in value) if isinstance(value, list | tuple) else value
