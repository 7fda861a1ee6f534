"""Values of a spec's fields as JSON: rows by their class, functions by module and name."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

from resflax.errors import UserError
from resflax.nn.antialias import AntiAlias
from resflax.nn.blocks import ConvRow
from resflax.nn.convs import ConvKind
from resflax.nn.ensembles import EnsembleRow
from resflax.nn.functions import function_name, import_function, is_importable
from resflax.nn.gates import Gate
from resflax.nn.norms import NormRow
from resflax.nn.orders import Order
from resflax.nn.shortcuts import ShortcutRow
from resflax.nn.stems import Stem, StemConv

ROWS: dict[str, Any] = {
    row.__name__: row
    for row in (
        ConvRow,
        Stem,
        StemConv,
        ShortcutRow,
        Gate,
        Order,
        AntiAlias,
        NormRow,
        ConvKind,
        EnsembleRow,
    )
}
NOT_IMPORTABLE = "cannot be imported: put its module on the Python path (PYTHONPATH), or "


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
    if isinstance(value, Fraction):
        return str(value)
    # Others, such as an array in a `partial`, cannot be restored.
    return value if isinstance(value, str | int | float | None) else function_name(value)


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
            arguments = decode(fields["args"])
            if is_missing((arguments, keywords)):
                return MissingFunction(fields["function"], NOT_IMPORTABLE)
            return partial(decode(fields["function"]), *arguments, **keywords)
        fields = {key: decode(item) for key, item in fields.items()}
        if "width_fraction" in fields:
            fields["width_fraction"] = Fraction(fields["width_fraction"])
        return ROWS[kind](**fields)
    if isinstance(value, str) and ":" in value:
        return _find(value, import_functions)
    return value


def is_missing(value: Any) -> bool:
    """Returns whether a value has a function that was not imported."""
    return any(isinstance(part, MissingFunction) for part in _parts(value))


def describe_saved(fields: Mapping[str, Any]) -> list[str]:
    """Returns lines that say how functions of a spec are saved; none if there are no functions.

    Args:
      fields: the fields of `Spec.own_parts`, with the values that the spec has.
    """
    importable, others = list[str](), list[str]()
    for field, value in fields.items():
        if isinstance(value, str):
            others.append(f"{field} {value!r}, a row that this program put into a table")
        for part in filter(callable, _parts(value)):
            if type(part).__name__ not in ROWS:
                group = importable if is_importable(part) else others
                group.append(f"{field} {function_name(part)}")
    lines = []
    if importable:
        names = ", ".join(dict.fromkeys(importable))
        lines.append(f"saved by name, and imported where the run is read: {names}")
    if others:
        lines.append(
            f"cannot be imported where the run is read: {', '.join(dict.fromkeys(others))}: read it"
            " with load_pretrained(RUN, model=spec), or define functions with def in a module"
        )
    return lines


def _parts(value: Any) -> Iterator[Any]:
    """Yields a value and what is in it: of tuples, rows, mappings and `partial`."""
    if isinstance(value, partial):
        yield from _parts((value.func, value.args, value.keywords))
        return
    yield value
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, tuple | dict):
        for part in inner:
            yield from _parts(part)


def _find(name: str, import_functions: bool) -> Any:
    if not import_functions:
        return MissingFunction(name, "is not imported from a file of weights: ")
    try:
        return import_function(name)
    except UserError:
        return MissingFunction(name, NOT_IMPORTABLE)
