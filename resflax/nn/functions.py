"""Functions of the user's own in a network: names, signatures, and the shapes they return."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.errors import UserError

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

    >>> function_name(jax.nn.relu), function_name(functools.partial(np.clip, 0))
    ('jax._src.nn.functions:relu', 'numpy:clip')
    """
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


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
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(
            f"cannot import {name!r}: {e}: put the module on the Python path (PYTHONPATH), or pass"
            " the function itself"
        ) from e
    return found


def strided(shape: tuple[int, ...], stride: int, features: int) -> Shape:
    """Returns the shape of a feature map after a stride, rounded up.

    >>> strided((2, 7, 7, 8), 2, 16)
    (2, 4, 4, 16)
    """
    return (shape[0], *(-(-size // stride) for size in shape[1:-1]), features)


def checked(
    field: str,
    function: Callable[..., Any],
    signature: Signature,
    expected: Callable[..., Shape | None],
) -> Callable[..., Any]:
    """Returns a function that raises `UserError` where `function` fails, or returns another shape.

    Args:
      field: the field of the spec that has the function.
      function: of arguments as in `signature`, of which "x" or the first one is an array.
      signature: for the message.
      expected: `(*arguments) -> shape`, with None for axes of any size; None for any result.
    """
    name = "x" if "x" in signature.arguments else signature.arguments[0]
    position = signature.arguments.index(name)

    def call(*args: Any, **kwargs: Any) -> Any:
        shape = np.shape(args[position])
        start = f"{field} {function_name(function)}"
        try:
            result = function(*args, **kwargs)
        except UserError:
            raise
        except Exception as e:
            reason = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''}"
            raise UserError(
                f"{start} fails on {name} of shape {shape}: {reason}; expected {signature}"
            ) from e
        want = expected(*args)
        if want is not None and not _has_shape(result, want):
            got = f"shape {result.shape}" if hasattr(result, "shape") else type(result).__name__
            shown = f"({', '.join('any' if size is None else str(size) for size in want)})"
            raise UserError(
                f"{start} returns {got} for {name} of shape {shape}: expected an array of shape"
                f" {shown}, from {signature}"
            )
        return result

    return call


def _has_shape(result: Any, want: Shape) -> bool:
    if not isinstance(result, jax.Array | np.ndarray) or result.ndim != len(want):
        return False
    sizes = zip(result.shape, want, strict=True)
    # Symbolic sizes, as in `jax.export`, are not compared.
    return all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
