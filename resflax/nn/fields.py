"""Looks up the parts of a network that the fields of `Spec` choose: by name, row or function.

`resolve` is the only function that looks up a name in its table, and the only one that makes a row
from a function: the network, the inference form and everything else that reads a spec call it.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from resflax.errors import UserError, suggest, unknown
from resflax.nn.blocks import ConvRow
from resflax.nn.field_table import FIELDS, SHIPPED, Field
from resflax.nn.functions import Signature, checked, describe


def resolve(field: str, value: Any) -> Any:
    """Returns the row of `FIELDS[field].table` that a value of the field is or names.

    The functions of a row that the library does not ship raise `UserError` where they fail, or
    return another shape.

    Args:
      field: a name in `FIELDS`.
      value: a name, a row or a function. Of a network with different blocks, that of one stage.

    Raises:
      UserError: if the value is none of them.

    >>> from resflax.nn import STEMS
    >>> resolve("stem", "cifar") is STEMS["cifar"] is resolve("stem", STEMS["cifar"])
    True
    """
    row, part = FIELDS[field], value
    if isinstance(value, str):
        if value not in row.table:
            raise unknown(field, value, row.table)
        part = row.table[value]
    if any(part is shipped for shipped in SHIPPED[field].values()):
        return part
    if _is_row(row, part):
        return _checked_row(field, part) if row.functions else part
    if not row.call or not callable(part) or not row.call.signature.fits(part):
        raise _invalid(field, part)
    return _function_row(field, _hashable(field, part, row.call.signature))


def _hashable(field: str, function: Any, signature: Signature) -> Any:
    try:
        hash(function)
    except TypeError as e:
        arguments = ", ".join(signature.arguments)
        raise UserError(
            f"{field} is {describe(function)}, which has no hash, and a spec needs one: wrap it in"
            f" a function, such as `lambda {arguments}: f({arguments})`"
        ) from e
    return function


@cache
def _function_row(field: str, function: Callable[..., Any]) -> Any:
    row = FIELDS[field]
    assert row.call
    return row.make_row(checked(field, function, row.call))


def _checked_row(field: str, row: Any) -> Any:
    """Returns a row whose functions are checked where they run.

    Raises:
      UserError: if one of them is not a function with its signature.
    """
    for name, call in FIELDS[field].functions.items():
        function = getattr(row, name)
        is_valid = callable(function) and call.signature.fits(function)
        if not is_valid and not (function is None and call.optional):
            raise UserError(
                f"{field} is {describe(row)}: expected {name} to be a function {call.signature}"
            )
    try:
        return _with_checks(field, row)
    except TypeError as e:
        raise UserError(
            f"{field} is {describe(row)}: {e}, expected values that have a hash, such as tuples in"
            " place of lists"
        ) from e


@cache
def _with_checks(field: str, row: Any) -> Any:
    calls = FIELDS[field].functions.items()
    functions = {name: (getattr(row, name), call) for name, call in calls}
    return row._replace(
        **{name: checked(field, f, call) for name, (f, call) in functions.items() if f is not None}
    )


def is_shipped(field: str, value: Any) -> bool:
    """Returns whether a value is the name of a row that is as the library ships it.

    The tables are open: a program can add rows, and replace them. What knows the shipped rows by
    their names, such as the inference form and other libraries' weights, asks this first.

    >>> from resflax.nn.attention import ATTENTION
    >>> is_shipped("attention", "se"), is_shipped("attention", ATTENTION["se"])
    (True, False)
    """
    if not isinstance(value, str) or value not in SHIPPED[field]:
        return False
    return bool(FIELDS[field].table.get(value) is SHIPPED[field][value])


def canonical(field: str, value: Any) -> Any:
    """Returns the simplest equal value of a field: the name of a shipped row where it has one.

    Raises:
      UserError: if the value is neither a name, nor a row, nor a function with the signature.

    >>> from resflax.nn import ACTIVATIONS
    >>> canonical("activation", ACTIVATIONS["silu"])
    'silu'
    """
    if isinstance(value, list):
        value = tuple(value)
    resolve(field, value)
    if isinstance(value, str):
        return value
    names = (name for name, row in SHIPPED[field].items() if row is value or row == value)
    return next((name for name in names if is_shipped(field, name)), value)


def canonical_block(value: Any) -> Any:
    """Returns `canonical` of a block: one for all stages, or a tuple with one per stage."""
    per_stage = isinstance(value, list | tuple) and not hasattr(value, "_fields")
    if not per_stage or not value or _is_row(FIELDS["block"], tuple(value)):
        return canonical("block", value)
    return tuple(canonical("block", block) for block in value)


def check_named(parts: Mapping[str, Any], purpose: str) -> None:
    """Checks that a network has no parts of the user's own, for what knows the shipped ones only.

    Args:
      parts: `Spec.own_parts`.
      purpose: why it has to, for the message.

    Raises:
      UserError: if there is one.
    """
    for field, part in parts.items():
        names = ", ".join(SHIPPED[field])
        raise UserError(f"{field} is {describe(part)}, and {purpose}: expected one of {names}")


def _is_row(row: Field, value: Any) -> bool:
    if row.row is tuple:  # a branch: a tuple of convolutions
        return isinstance(value, tuple) and bool(value) and {*map(type, value)} == {ConvRow}
    return row.row is not None and isinstance(value, row.row)


def _invalid(field: str, value: Any) -> UserError:
    row = FIELDS[field]
    kinds = [suggest(field, row.table)]
    if row.row:
        kinds.append("a tuple of ConvRow" if row.row is tuple else f"a row, {row.row.__name__}")
    if row.call:
        kinds.append(f"a function {row.call.signature}")
    arguments = ""
    if callable(value):
        with contextlib.suppress(TypeError, ValueError):
            arguments = str(inspect.signature(value))
    return UserError(f"{field} is {describe(value)}{arguments}: {', or '.join(kinds)}")
