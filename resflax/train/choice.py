"""A value that differs between members of an ensemble, inside a traced step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Choice(NamedTuple):
    """A traced number that is one of a few known ones.

    Attributes:
      value: float32 scalar.
      choices: the numbers that it can be.
    """

    value: Float[Array, ""]
    choices: tuple[float, ...]

    def map(self, function: Callable[[float], Any]) -> Any:
        """Returns `function(value)`, with the bits that it has for a number.

        The function runs for each choice, so what it computes in float64 on the host is rounded as
        in a run of that value alone.

        >>> rate = Choice(jnp.float32(0.3), (0.1, 0.3))
        >>> rate.map(lambda x: jnp.float32(1 - x)) == np.float32(1 - 0.3)
        Array(True, dtype=bool)
        """
        matches = [self.value == np.float32(choice) for choice in self.choices]
        results = [function(choice) for choice in self.choices]
        return jax.tree.map(
            lambda *arrays: jnp.select(matches, list(map(jnp.asarray, arrays))), *results
        )


def map_value(function: Callable[[float], Any], value: float | Choice) -> Any:
    """Returns `function(value)` for a number or a `Choice`."""
    return value.map(function) if isinstance(value, Choice) else function(value)
