"""The keys of the config, as text for `--help`."""

import shutil
import textwrap

from resflax.train.config_keys import GROUPS, Key
from resflax.train.config_rules import expected_values

MAX_WIDTH = 100


def describe_keys(width: int | None = None) -> str:
    """Returns every key with its default, meaning and valid values, by group.

    Args:
      width: characters per line; by default those of the terminal, at most `MAX_WIDTH`.
    """
    width = width or min(shutil.get_terminal_size().columns, MAX_WIDTH)
    lines = ["Keys of the config with their defaults, before those of the recipe:"]
    for group, keys in GROUPS.items():
        lines += ["", f"{group.capitalize()}:"]
        for key, row in keys.items():
            lines += [_flag(key, row), *_describe(key, row, width)]
    return "\n".join(lines)


def _flag(key: str, row: Key) -> str:
    """Returns the flag of a key with its default, lists as a shell takes them."""
    if row.default is None:
        return f"  --config.{key}"
    numbers = ",".join(f"{x:.4g}" for x in row.default) if isinstance(row.default, tuple) else ""
    return f"  --config.{key}={numbers or row.default}"


def _describe(key: str, row: Key, width: int) -> list[str]:
    text = f"{row.meaning[0].upper()}{row.meaning[1:]}."
    expected = expected_values(key)
    if expected != "a text":
        text += f" Values: {expected}."
    indent = " " * 6
    return textwrap.wrap(
        text.replace("`", ""),
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
