"""`FIELDS`: the fields of `Spec` that choose a part of the network, and how they call functions."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from resflax.nn.activations import ACTIVATIONS
from resflax.nn.antialias import ANTIALIAS, AntiAlias, filtered_maximum
from resflax.nn.attention import ATTENTION
from resflax.nn.blocks import BLOCKS
from resflax.nn.convs import CONVS, ConvKind
from resflax.nn.ensembles import ENSEMBLES, EnsembleRow
from resflax.nn.functions import Call, Signature, strided
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
    lambda ops, x, features: (x.shape[0], *[None] * (x.ndim - 2), features),
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
            Signature(("ops", "x"), (), "array (n, channels)"), lambda ops, x: (x.shape[0], None)
        ),
    ),
    "head": Field(
        HEADS,
        Call(
            Signature(FEATURES, (), "logits (n, features), or a tree of arrays (n, ...)"),
            lambda ops, x, features: (x.shape[0], features),
            is_tree=True,
        ),
    ),
    "ensemble": Field(ENSEMBLES, row=EnsembleRow),
}  # fmt: skip
# The rows of each table as the library ships them; the tables are open.
SHIPPED: dict[str, dict[str, Any]] = {field: dict(row.table) for field, row in FIELDS.items()}
