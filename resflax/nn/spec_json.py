"""Values of a spec's fields as JSON: rows by their class, functions by module and name."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

from resflax.errors import UserError
from resflax.nn.antialias import AntiAlias
from resflax.nn.blocks import ConvRow
from resflax.nn.ensembles import EnsembleRow
from resflax.nn.functions import function_name, import_function
from resflax.nn.gates import Gate
from resflax.nn.norms import NormRow
from resflax.nn.orders import Order
from resflax.nn.shortcuts import ShortcutRow
from resflax.nn.stems import Stem, StemConv

ROWS: dict[str, Any] = {
    row.__name__: row
    for row in (ConvRow, Stem, StemConv, ShortcutRow, Gate, Order, AntiAlias, NormRow, EnsembleRow)
}


class MissingFunction:
    """A function that a file names and that cannot be imported; an error where it is called."""

    def __init__(self, name: str, reason: UserError) -> None:
        self.__module__, _, self.__qualname__ = name.partition(":")
        self.reason = reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises `UserError`."""
        name = function_name(self)
        raise UserError(
            f"the network has the function {name}, which cannot be imported: put its module on the"
            " Python path (PYTHONPATH), or pass a spec that has the function, as in"
            " load_pretrained(..., model=spec)"
        ) from self.reason


def to_json(value: Any) -> Any:
    """Returns the value of a field as JSON.

    Names and numbers are themselves, a function is "module:name", and a row is an object with its
    class and the attributes that are not the default.

    >>> to_json((ConvRow(3, strided=True), ConvRow(3, expansion=1)))[0]
    {'ConvRow': {'kernel': 3, 'strided': True}}
    >>> import math
    >>> to_json(math.sqrt), to_json("se")
    ('math:sqrt', 'se')
    """
    if type(value).__name__ in ROWS:
        defaults = value._field_defaults
        items = zip(value._fields, value, strict=True)
        given = {k: to_json(v) for k, v in items if k not in defaults or v != defaults[k]}
        return {type(value).__name__: given}
    if isinstance(value, partial):
        arguments = {"args": to_json(value.args), "keywords": to_json(value.keywords)}
        return {"partial": {"function": function_name(value), **arguments}}
    if callable(value):
        return function_name(value)
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Fraction) else value


def from_json(value: Any) -> Any:
    """Returns the value that `to_json` encodes, and a `MissingFunction` for one not importable."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if isinstance(value, dict):
        ((kind, fields),) = value.items()
        if kind == "partial":
            keywords = {key: from_json(item) for key, item in fields["keywords"].items()}
            return partial(_find(fields["function"]), *from_json(fields["args"]), **keywords)
        fields = {key: from_json(item) for key, item in fields.items()}
        if "width_fraction" in fields:
            fields["width_fraction"] = Fraction(fields["width_fraction"])
        return ROWS[kind](**fields)
    return _find(value) if isinstance(value, str) and ":" in value else value


def _find(name: str) -> Callable[..., Any]:
    try:
        return import_function(name)
    except UserError as e:
        return MissingFunction(name, e)
