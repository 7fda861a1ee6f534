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
    """A function that a file names and that was not imported; an error where it is called."""

    def __init__(self, name: str, reason: str) -> None:
        self.__module__, _, self.__qualname__ = name.partition(":")
        self.reason = reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises `UserError`."""
        raise UserError(
            f"the network has the function {function_name(self)}, which {self.reason}pass a spec"
            " that has the function, as in load_pretrained(..., model=spec)"
        )


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


def from_json(value: Any, *, import_functions: bool) -> Any:
    """Returns the value that `to_json` encodes.

    Args:
      value: JSON values.
      import_functions: import functions, which runs the code of their modules. Otherwise, and where
        this fails, each is a `MissingFunction`.
    """
    decode = partial(from_json, import_functions=import_functions)
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if isinstance(value, dict):
        ((kind, fields),) = value.items()
        if kind == "partial":
            keywords = {key: decode(item) for key, item in fields["keywords"].items()}
            return partial(decode(fields["function"]), *decode(fields["args"]), **keywords)
        fields = {key: decode(item) for key, item in fields.items()}
        if "width_fraction" in fields:
            fields["width_fraction"] = Fraction(fields["width_fraction"])
        return ROWS[kind](**fields)
    if isinstance(value, str) and ":" in value:
        return _find(value, import_functions)
    return value


def _find(name: str, import_functions: bool) -> Callable[..., Any]:
    if not import_functions:
        return MissingFunction(name, "is not imported from a file of weights: ")
    try:
        return import_function(name)
    except UserError:
        reason = "cannot be imported: put its module on the Python path (PYTHONPATH), or "
        return MissingFunction(name, reason)
