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

import jax

from resflax.errors import UserError, suggest, unknown
from resflax.nn.activations import ACTIVATIONS
from resflax.nn.antialias import ANTIALIAS, AntiAlias, filtered_maximum
from resflax.nn.attention import ATTENTION
from resflax.nn.blocks import BLOCKS, ConvRow
from resflax.nn.convs import CONVS, ConvKind
from resflax.nn.ensembles import ENSEMBLES, EnsembleRow
from resflax.nn.functions import Call, Signature, checked, describe, strided
from resflax.nn.gates import GATES, Gate
from resflax.nn.heads import HEADS, POOLINGS
from resflax.nn.norms import NORMS, NormRow
from resflax.nn.orders import ORDERS, Order
from resflax.nn.shortcuts import SHORTCUTS, ShortcutRow
from resflax.nn.stems import STEMS, Stem


class Field(NamedTuple):
    """How a field of `Spec` chooses a part.

    Attributes:
      table: the rows by name.
      call: how the network calls a function. None for a field that takes no functions.
      row: class of the rows. None if they are functions.
      make_row: from a function, with checks of its results, to a row.
      functions: how the network calls the functions that a row has, by attribute.
    """

    table: Mapping[str, Any]
    call: Call | None = None
    row: type | None = None
    make_row: Callable[[Callable[..., Any]], Any] = lambda function: function
    functions: Mapping[str, Call] = {}


def resolve(field: str, value: Any) -> Any:
    """Returns the row of `FIELDS[field].table` that a value of the field is or names.

    The functions of a row that the library does not ship raise `UserError` where they fail, or
    return another shape.

    Args:
      field: a name in `FIELDS`.
      value: a name, a row or a function. Of a network with different blocks, that of one stage.

    Raises:
      UserError: if the value is none of them.

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
    return _function_row(field, part)


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
        raise UserError(f"{field} is {row}: {e}, expected tuples in place of lists") from e


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
    per_stage = isinstance(value, list | tuple) and not _is_row(FIELDS["block"], tuple(value))
    if not per_stage or not value:
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


def _shortcut_row(function: Callable[..., Any]) -> ShortcutRow:
    def make(ops: Any, geometry: Any, *, norm: bool) -> Any:
        del norm
        return lambda h, shape: function(ops, h, shape[-1], geometry.stride)

    return ShortcutRow(make)


def _strided_shape(ops: Any, x: Any, features: int, stride: int) -> Any:
    return strided(x.shape, stride, features)


def _filtered_shape(ops: Any, x: Any, stride: int) -> Any:
    return strided(x.shape, stride, x.shape[-1])


def _same_shape(ops: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x.shape


def _convolved_shape(x: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    def convolve(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)

    return jax.eval_shape(convolve, x, kernel).shape


FEATURES = ("ops", "x", "features")
STRIDED = Call(
    Signature((*FEATURES, "stride"), (), "array (n, *space / stride, features)"), _strided_shape
)
STEM = Call(
    Signature(FEATURES, (), "array (n, *space, features)"),
    lambda ops, x, features: (len(x), *[None] * (x.ndim - 2), features),
)
FILTER = Call(
    Signature(("ops", "x", "stride"), (), "array (n, *space / stride, channels)"), _filtered_shape
)
NORM = Call(Signature(("ops", "x"), ("name", "zero"), "array of the shape of x"), _same_shape)
CONV = Call(
    Signature(
        ("x", "kernel", "strides", "padding"),
        ("lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count", "precision"),
        "array, as jax.lax.conv_general_dilated",
    ),
    _convolved_shape,
)
FIELDS: dict[str, Field] = {
    "block": Field(BLOCKS, STRIDED, tuple),
    "stem": Field(
        STEMS,
        STEM,
        Stem,
        lambda function: Stem((), function=function),
        {
            "pool": Call(
                Signature(("ops", "x", "antialias"), (), "array (n, *space / 2, channels)"),
                lambda ops, x, antialias: _filtered_shape(ops, x, 2),
                optional=True,
            ),
            "function": STEM._replace(optional=True),
        },
    ),
    "shortcut": Field(
        SHORTCUTS,
        STRIDED,
        ShortcutRow,
        _shortcut_row,
        {
            "make": Call(
                Signature(("ops", "geometry"), ("norm",), "function (h, shape)"),
                result=Call(
                    Signature(("h", "shape"), (), "array of that shape"), lambda h, shape: shape
                ),
                optional=True,
            )
        },
    ),
    "gate": Field(
        GATES,
        Call(Signature(("h", "y", "s"), (), "array of the shape of y"), lambda h, y, s: y.shape),
        Gate,
        lambda function: Gate(lambda h, y, s, keys: function(h, y, s)),
        {
            "combine": Call(
                Signature(("h", "y", "s", "keys"), (), "array of the shape of y"),
                lambda h, y, s, keys: y.shape,
            )
        },
    ),
    "order": Field(ChainMap[str, Any]({"auto": None}, ORDERS), row=Order),
    "attention": Field(
        ATTENTION,
        Call(Signature(("ops", "x", "channels"), (), "array of the shape of x"), _same_shape),
    ),
    "antialias": Field(
        ANTIALIAS,
        FILTER,
        AntiAlias,
        filtered_maximum,
        {
            "pool": Call(
                Signature(("ops", "x"), (), "array (n, *space / 2, channels)"),
                lambda ops, x: _filtered_shape(ops, x, 2),
            ),
            "downsample": FILTER._replace(optional=True),
        },
    ),
    "norm": Field(
        NORMS,
        NORM,
        NormRow,
        lambda function: NormRow(None, function=function),
        {
            "make": Call(
                Signature(
                    ("lift",),
                    ("train", "dtype", "axis_name", "mode", "scale_init", "act", "name"),
                    "module or function (x)",
                ),
                result=Call(Signature(("x",), (), "array of the shape of x"), lambda x: x.shape),
                optional=True,
            ),
            "function": NORM._replace(optional=True),
        },
    ),
    "activation": Field(
        ACTIVATIONS, Call(Signature(("x",), (), "array of the shape of x"), lambda x: x.shape)
    ),
    "conv": Field(CONVS, CONV, ConvKind, ConvKind, {"function": CONV}),
    "pooling": Field(
        POOLINGS,
        Call(
            Signature(("ops", "x"), (), "array (n, channels)"), lambda ops, x: (len(x), None)
        ),
    ),
    "head": Field(
        HEADS,
        Call(
            Signature(FEATURES, (), "logits (n, features), or a tree of arrays (n, ...)"),
            lambda ops, x, features: (len(x), ...),
            is_tree=True,
        ),
    ),
    "ensemble": Field(ENSEMBLES, row=EnsembleRow),
}  # fmt: skip
# The rows of each table as the library ships them; the tables are open.
SHIPPED: dict[str, dict[str, Any]] = {field: dict(row.table) for field, row in FIELDS.items()}
