"""The fields of `Spec` that choose a part of the network: by name, as a row, or as a function.

`FIELDS` has a row per field. `resolve` is the only function that looks up a name in its table, and
the only one that makes a row from a function: the network, the inference form and everything else
that reads a spec call it.
"""

import contextlib
import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from resflax.errors import UserError, suggest, unknown
from resflax.nn.activations import ACTIVATIONS
from resflax.nn.antialias import ANTIALIAS, AntiAlias, filtered_maximum
from resflax.nn.attention import ATTENTION
from resflax.nn.blocks import BLOCKS, ConvRow
from resflax.nn.ensembles import ENSEMBLES, EnsembleRow
from resflax.nn.functions import Signature, checked, function_name, strided
from resflax.nn.gates import GATES, Gate
from resflax.nn.heads import HEADS, POOLINGS
from resflax.nn.layers import CONVS
from resflax.nn.norms import NORMS, NormRow
from resflax.nn.orders import ORDERS, Order
from resflax.nn.shortcuts import SHORTCUTS, ShortcutRow
from resflax.nn.stems import STEMS, Stem


class Field(NamedTuple):
    """How a field of `Spec` chooses a part.

    Attributes:
      table: the rows by name.
      signature: how the network calls a function. None for a field that takes no functions.
      expected: `(*arguments) -> shape` of a function's result; None for any.
      row: class of the rows. None if they are functions.
      make_row: from a function, with checks of its results, to a row.
    """

    table: Mapping[str, Any]
    signature: Signature | None = None
    expected: Callable[..., Any] = lambda *args: None
    row: type | None = None
    make_row: Callable[[Callable[..., Any]], Any] = lambda function: function


def resolve(field: str, value: Any) -> Any:
    """Returns the row of `FIELDS[field].table` that a value of the field is or names.

    Args:
      field: a name in `FIELDS`.
      value: a name, a row or a function. Of a network with different blocks, that of one stage.

    Raises:
      UserError: if the value is none of them.

    >>> resolve("stem", "cifar") is STEMS["cifar"] is resolve("stem", STEMS["cifar"])
    True
    """
    row = FIELDS[field]
    if isinstance(value, str) and value in row.table:
        return row.table[value]
    if _is_row(row, value):
        return value
    if not row.signature or not callable(value) or not row.signature.fits(value):
        raise _invalid(field, value)
    return _function_row(field, value)


@cache
def _function_row(field: str, function: Callable[..., Any]) -> Any:
    row = FIELDS[field]
    assert row.signature
    return row.make_row(checked(field, function, row.signature, row.expected))


def canonical(field: str, value: Any) -> Any:
    """Returns the simplest equal value of a field: the name of a shipped row where it has one.

    Raises:
      UserError: if the value is neither a name, nor a row, nor a function with the signature.

    >>> canonical("activation", ACTIVATIONS["silu"])
    'silu'
    """
    if isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, str):
        shipped = FIELDS[field].table.items()
        value = next((name for name, row in shipped if row is value or row == value), value)
    resolve(field, value)
    return value


def canonical_block(value: Any) -> Any:
    """Returns `canonical` of a block: one for all stages, or a tuple with one per stage."""
    per_stage = isinstance(value, list | tuple) and not _is_row(FIELDS["block"], tuple(value))
    if not per_stage or not value:
        return canonical("block", value)
    return tuple(canonical("block", block) for block in value)


def describe(value: Any) -> str:
    """Returns a value of a field for messages: a name in quotes, or a function as "module:name".

    >>> describe("se"), describe(describe)
    ("'se'", 'resflax.nn.fields:describe')
    """
    return function_name(value) if callable(value) else repr(value)


def check_named(parts: Mapping[str, Any], purpose: str) -> None:
    """Checks that a network has no parts of the user's own, for what knows the shipped ones only.

    Args:
      parts: `Spec.own_parts`.
      purpose: why it has to, for the message.

    Raises:
      UserError: if there is one.
    """
    for field, part in parts.items():
        names = ", ".join(FIELDS[field].table)
        raise UserError(f"{field} is {describe(part)}, and {purpose}: expected one of {names}")


def _is_row(row: Field, value: Any) -> bool:
    if row.row is tuple:  # a branch: a tuple of convolutions
        return isinstance(value, tuple) and bool(value) and {*map(type, value)} == {ConvRow}
    if row.row:
        return isinstance(value, row.row)
    return any(value is shipped for shipped in row.table.values())


def _invalid(field: str, value: Any) -> UserError:
    row = FIELDS[field]
    if isinstance(value, str):
        return unknown(field, value, row.table)
    kinds = [suggest(field, row.table)]
    if row.row:
        kinds.append("a tuple of ConvRow" if row.row is tuple else f"a row, {row.row.__name__}")
    if row.signature:
        kinds.append(f"a function {row.signature}")
    arguments = ""
    if callable(value):
        with contextlib.suppress(TypeError, ValueError):
            arguments = str(inspect.signature(value))
    return UserError(f"{field} is {describe(value)}{arguments}: {', or '.join(kinds)}")


def _shortcut_row(function: Callable[..., Any]) -> ShortcutRow:
    def make(ops: Any, geometry: Any, *, norm: bool) -> Any:
        del norm
        return lambda h, shape: function(ops, h, shape[-1], geometry.stride)

    return ShortcutRow(make)


def _strided_shape(ops: Any, x: Any, features: int, stride: int) -> Any:
    return strided(x.shape, stride, features)


def _same_shape(ops: Any, x: Any, *args: Any) -> Any:
    return x.shape


FEATURES = ("ops", "x", "features")
STRIDED = Signature((*FEATURES, "stride"), (), "array (n, *space / stride, features)")
FIELDS: dict[str, Field] = {
    "block": Field(BLOCKS, STRIDED, _strided_shape, tuple),
    "stem": Field(
        STEMS,
        Signature(FEATURES, (), "array (n, *space, features)"),
        lambda ops, x, features: (len(x), *[None] * (x.ndim - 2), features),
        Stem,
        lambda function: Stem((), function=function),
    ),
    "shortcut": Field(SHORTCUTS, STRIDED, _strided_shape, ShortcutRow, _shortcut_row),
    "gate": Field(
        GATES,
        Signature(("h", "y", "s"), (), "array of the shape of y"),
        lambda h, y, s: y.shape,
        Gate,
        lambda function: Gate(lambda h, y, s, keys: (function(h, y, s),)),
    ),
    "order": Field(ChainMap[str, Any]({"auto": None}, ORDERS), row=Order),
    "attention": Field(
        ATTENTION, Signature(("ops", "x", "channels"), (), "array of the shape of x"), _same_shape
    ),
    "antialias": Field(
        ANTIALIAS,
        Signature(("ops", "x", "stride"), (), "array (n, *space / stride, channels)"),
        lambda ops, x, stride: strided(x.shape, stride, x.shape[-1]),
        AntiAlias,
        filtered_maximum,
    ),
    "norm": Field(
        NORMS,
        Signature(("ops", "x"), ("name", "zero"), "array of the shape of x"),
        _same_shape,
        NormRow,
        lambda function: NormRow(None, function=function),
    ),
    "activation": Field(
        ACTIVATIONS, Signature(("x",), (), "array of the shape of x"), lambda x: x.shape
    ),
    "conv": Field(
        CONVS,
        Signature(
            ("x", "kernel", "strides", "padding"),
            (
                "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
                "precision",
            ),
            "array, as jax.lax.conv_general_dilated",
        ),
    ),
    "pooling": Field(
        POOLINGS,
        Signature(("ops", "x"), (), "array (n, channels)"),
        lambda ops, x: (len(x), None),
    ),
    "head": Field(HEADS, Signature(FEATURES, (), "logits (n, features)")),
    "ensemble": Field(ENSEMBLES, row=EnsembleRow),
}  # fmt: skip
