"""The grid of a sweep: keys of the config with the values that they take."""

import itertools
import re
from collections.abc import Iterator

from resflax.errors import UserError

EXAMPLE = "learning_rate=0.05,0.1;seed=0..4"
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
MAX_RUNS = 10_000
# The text of each key, as on the command line.
Texts = dict[str, str]


def parse_grid(text: str) -> dict[str, list[str]]:
    """Returns the texts of the values of each key, in the order of the grid.

    Args:
      text: "KEY=A,B;KEY=FIRST..LAST". A comma inside of brackets belongs to a value.

    Raises:
      UserError: if it has another form, a key or a value twice, or too many runs.

    >>> parse_grid("learning_rate=0.05,0.1;seed=0..2;decay_epochs=(1,2),(3,)")
    {'learning_rate': ['0.05', '0.1'], 'seed': ['0', '1', '2'], 'decay_epochs': ['(1,2)', '(3,)']}
    """
    grid: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        key, equals, values = part.partition("=")
        key = key.strip().removeprefix("--").removeprefix("config.")
        if not key or not equals or not values.strip():
            raise UserError(f"--grid has {part!r}: expected KEY=VALUE,VALUE such as {EXAMPLE!r}")
        if key in grid:
            raise UserError(f"--grid has config.{key} twice: expected each key once")
        grid[key] = [one for value in _split(values) for one in _expand(value)]
        for k, value in enumerate(grid[key]):
            if value in grid[key][:k]:
                raise UserError(f"--grid has the value {value} of config.{key} twice")
    if not grid:
        raise UserError(f"--grid is {text!r}: expected such as {EXAMPLE!r}")
    return grid


def combinations(grid: dict[str, list[str]]) -> Iterator[Texts]:
    """Yields the texts of each run, the last key fastest."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _split(values: str) -> list[str]:
    """Splits a text at its commas, except those inside of brackets."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _expand(value: str) -> list[str]:
    """Returns the integers of a range such as 0..4, or the value alone."""
    match = RANGE.fullmatch(value)
    if not match:
        return [value]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_RUNS:
        raise UserError(f"--grid has {value}: expected FIRST..LAST, up to {MAX_RUNS} values")
    return [str(number) for number in range(first, last + 1)]
