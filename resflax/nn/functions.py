"""Functions of the user's own in a network: names, signatures, and the shapes they return."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import CallCompactUnboundModuleError, InvalidRngError

from resflax.errors import UserError, suggest

Shape = tuple[int | None, ...]


class Signature(NamedTuple):
    """How the network calls a function.

    Attributes:
      arguments: names of the positional arguments.
      keywords: names of the keyword arguments.
      result: the result, in words.
    """

    arguments: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    result: str = "array"

    def __str__(self) -> str:
        parts = [*self.arguments, *(["*", *self.keywords] if self.keywords else [])]
        return f"({', '.join(parts)}) -> {self.result}"

    def fits(self, function: Callable[..., Any]) -> bool:
        """Returns whether a function can be called with these arguments.

        >>> signature = Signature(("ops", "x"))
        >>> signature.fits(lambda ops, x, scale=2: x), signature.fits(lambda x: x)
        (True, False)
        """
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some functions written in C have none
            return True
        try:
            signature.bind(*self.arguments, **dict.fromkeys(self.keywords))
        except TypeError:
            return False
        return True


def function_name(function: Any) -> str:
    """Returns module and qualified name of a function, "module:name"; for `partial` those inside.

    An object that is called has the name of its class with parentheses.

    >>> function_name(jax.nn.relu), function_name(functools.partial(np.clip, 0))
    ('jax._src.nn.functions:relu', 'numpy:clip')
    >>> function_name(np.poly1d([1, 2]))
    'numpy:poly1d()'
    """
    while isinstance(function, functools.partial):
        function = function.func
    if hasattr(function, "__qualname__"):
        return f"{function.__module__}:{function.__qualname__}"
    return f"{type(function).__module__}:{type(function).__qualname__}()"


def is_importable(function: Any) -> bool:
    """Returns whether another program can import a function by its name.

    >>> is_importable(jax.nn.relu), is_importable(lambda x: x)
    (True, False)
    """
    name = function_name(function)
    if name.startswith("__main__:"):
        return False
    try:
        found = import_function(name)
    except UserError:
        return False
    return found is function


def import_function(name: str) -> Any:
    """Returns the object that `function_name` names.

    Raises:
      UserError: if it cannot be imported.

    >>> import_function("math:sqrt")(4)
    2.0
    """
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(
            f"cannot import {name!r}: {e}: put the module on the Python path (PYTHONPATH), or pass"
            " the function itself"
        ) from e
    owner = f"module {module}"
    for part in qualname.split("."):
        if not hasattr(found, part):
            known = [key for key in getattr(found, "__dict__", {}) if not key.startswith("_")]
            advice = suggest(part, known) if known else "define it at the top of a module"
            raise UserError(f"cannot import {name!r}: {owner} has no {part!r}: {advice}")
        found, owner = getattr(found, part), part
    return found


def strided(shape: tuple[int, ...], stride: int, features: int) -> Shape:
    """Returns the shape of a feature map after a stride, rounded up.

    >>> strided((2, 7, 7, 8), 2, 16)
    (2, 4, 4, 16)
    """
    return (shape[0], *(-(-size // stride) for size in shape[1:-1]), features)


class Call(NamedTuple):
    """How the network calls a function, and the shape of the result.

    Attributes:
      signature: of the function. Its argument "x", or the first one, is an array.
      expected: `(*arguments, **keywords) -> shape`, with None for axes of any size, and `...` at
        the end for any further ones; None for any result.
      result: of a function that makes a function: how the network calls that one.
      optional: whether a row may have None in its place.
      is_tree: whether the result may also be a tree of arrays, of which only the first axis is
        checked.
    """

    signature: Signature
    expected: Callable[..., Any] = lambda *args, **kwargs: None
    result: Any = None
    optional: bool = False
    is_tree: bool = False


def checked(field: str, function: Callable[..., Any], call: Call) -> Callable[..., Any]:
    """Returns a function that raises `UserError` where `function` fails, or returns another shape.

    Args:
      field: the field of the spec that has the function.
      function: the function.
      call: how the network calls it.
    """
    signature, name = call.signature, function_name(function)
    array = "x" if "x" in signature.arguments else signature.arguments[0]
    position = signature.arguments.index(array)

    def run(*args: Any, **kwargs: Any) -> Any:
        where = f"{array} of shape {np.shape(args[position])}"
        try:
            result = function(*args, **kwargs)
        except UserError:
            raise
        except Exception as e:
            reason = _reason(e, function, signature, args[0])
            on = "" if call.result else f" on {where}"
            raise UserError(f"{field} {name} fails{on}: {reason}; expected {signature}") from e
        if call.result:
            if not callable(result):
                raise UserError(
                    f"{field} {name} returns {type(result).__name__}: expected {signature}"
                )
            return checked(field, result, call.result)
        want = call.expected(*args, **kwargs)
        leaves = [result]
        if call.is_tree and not hasattr(result, "shape"):
            leaves, want = jax.tree.leaves(result), (want[0], ...)
        if want is not None and not (leaves and all(_has_shape(leaf, want) for leaf in leaves)):
            got = f"shape {result.shape}" if hasattr(result, "shape") else type(result).__name__
            names = {None: "any", ...: "..."}
            shown = f"({', '.join(names.get(size, str(size)) for size in want)})"
            raise UserError(
                f"{field} {name} returns {got} for {where}: expected an array of shape {shown},"
                f" from {signature}"
            )
        is_array = want is not None and not call.is_tree
        if is_array and not jnp.issubdtype(result.dtype, jnp.floating):
            raise UserError(
                f"{field} {name} returns {result.dtype} for {where}: expected floating-point"
                f" numbers, from {signature}"
            )
        return result

    run.__module__, _, run.__qualname__ = name.partition(":")  # for messages
    return run


def _reason(error: Exception, function: Any, signature: Signature, ops: Any) -> str:
    """Returns why a function failed, with advice for modules and `jax.jit`, in one line."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, CallCompactUnboundModuleError) or ".setup()" in lines[0]:
        module = type(function).__name__ if isinstance(function, nn.Module) else "Dense"
        module = f"nn.{module}" if hasattr(nn, module) else module
        made = f"lambda {', '.join(signature.arguments)}: {module}(...)(x)"
        return f"it calls a module that was made outside: make it in the function, `{made}`"
    if isinstance(error, InvalidRngError):
        return f"{lines[0]}: own parts have no random keys, use the spec's dropout or drop_path"
    # A tracer has none of the attributes of `ops`.
    is_traced = "Tracer has no" in lines[0] and hasattr(ops, lines[0].rpartition(" ")[2])
    if "ops" in signature.arguments and (is_traced or ".Ops'" in lines[0]):
        return "ops is not an array: apply jax.jit to the whole network instead"
    return f"{type(error).__name__}: {lines[0]}"


def _has_shape(result: Any, want: tuple[Any, ...]) -> bool:
    if not isinstance(result, jax.Array | np.ndarray):
        return False
    shape = result.shape
    if want[-1] is ...:
        want, shape = want[:-1], shape[: len(want) - 1]
    # Symbolic sizes, as in `jax.export`, are not compared.
    return len(shape) == len(want) and all(
        a == b
        for a, b in zip(shape, want, strict=True)
        if isinstance(a, int) and isinstance(b, int)
    )


def describe(value: Any) -> str:
    """Returns a value of a field for messages: a name in quotes, or a function as "module:name".

    A row has only the attributes that are not the default.

    >>> describe("se"), describe(describe)
    ("'se'", 'resflax.nn.functions:describe')
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        defaults: dict[str, Any] = getattr(value, "_field_defaults", {})
        given = zip(value._fields, value, strict=True)
        shown = [f"{k}={describe(v)}" for k, v in given if k not in defaults or v != defaults[k]]
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))}{',' if len(value) == 1 else ''})"
    return function_name(value) if callable(value) else repr(value)
