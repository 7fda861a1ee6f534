"""Values of config keys from the text of a command line: `--config.KEY=VALUE`."""

import ast
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from resflax.errors import UserError
from resflax.run.config_diff import flatten_config
from resflax.train.config_rules import RULES
from resflax.train.unknown_keys import explain, unknown_key

BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
MAX_SHOWN = 80  # characters of a text in an error message
# Lists for error messages; without parentheses, which a shell does not take.
LIST_EXAMPLE = "0.1,0.2"
LIST_EXAMPLES = {
    "decay_epochs": "30,60",
    "ensemble.seeds": "0,1",
    "profile_steps": "10,13",
    "data.mean": "0.485,0.456,0.406",
    "data.std": "0.229,0.224,0.225",
    "data.rand_augment": "2,9",
    "data.color_jitter": "0.4,0.4,0.4,0.1",
    "spec.depths": "3,4,6,3",
    "spec.widths": "64,128,256,512",
}


class Kind(NamedTuple):
    """A row of `KINDS`: how a text is read as a value of one type.

    Attributes:
      parse: returns the value, or raises an exception if the text is not one.
      expected: what a text must be, for error messages.
    """

    parse: Callable[[str], Any]
    expected: str


def _parse_literal(text: str) -> Any:
    """Returns the Python literal that a text is, or raises `ValueError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's advice on "(1)(2)"
        try:
            return ast.literal_eval(text)
        except (TypeError, SyntaxError, MemoryError, RecursionError) as e:
            raise ValueError(text) from e


def _parse_list(text: str) -> tuple[Any, ...]:
    """Returns the values of a list; a number alone is a list of one."""
    value = _parse_literal(text)
    if type(value) in (int, float):
        return (value,)
    if not isinstance(value, tuple | list):  # not the keys of a dict, or a set, without order
        raise ValueError(text)
    return tuple(value)


def _parse_any(text: str) -> Any:
    """Returns the list or None that a text stands for, or the text, unless it is a dict or set."""
    try:
        value = _parse_literal(text)
    except ValueError:
        return text
    if isinstance(value, dict | set):
        raise ValueError(text)
    return value if value is None or isinstance(value, tuple | list) else text


KINDS: dict[type, Kind] = {
    bool: Kind(lambda text: BOOLS[text.lower()], "true or false"),
    int: Kind(int, "an integer"),
    float: Kind(float, "a number"),
    str: Kind(str, "a text"),
    tuple: Kind(_parse_list, "a list such as {example}"),
    object: Kind(_parse_any, "a text or a list of texts"),
}


def set_values(config: ConfigDict, texts: dict[str, str | None]) -> None:
    """Sets keys of a config to the values that texts stand for.

    Args:
      config: changed here.
      texts: the text of each dotted key; None for a key without a text, which sets a bool to True.

    Raises:
      UserError: if a key is unknown, or a text is not a value of its type.
    """
    kinds = dict(_kinds(config))
    for key, text in texts.items():
        if key not in kinds:
            raise _explain_key(config, key)
        config.update_from_flattened_dict({key: _parse(key, text, kinds[key])})


def takes_text(config: ConfigDict, key: str) -> bool:
    """Returns whether a key of a config needs a text; a bool does not."""
    return dict(_kinds(config)).get(key) is not bool


def _parse(key: str, text: str | None, kind: type) -> Any:
    if text is None and kind is bool:
        return True
    row, rule = KINDS.get(kind, KINDS[object]), RULES.get(key)
    expected = row.expected.format(example=LIST_EXAMPLES.get(key, LIST_EXAMPLE))
    if rule and kind in (int, float):
        expected += f", {rule.expected}"
    if text is None:
        raise UserError(f"--config.{key} has no value: expected --config.{key}=VALUE, {expected}")
    try:
        return row.parse(text)
    except (ValueError, KeyError) as e:
        shown = repr(text) if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]!r}..."
        raise UserError(f"config.{key} is {shown}: expected {expected}") from e


def _kinds(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yields each dotted key and the type of its values, that of a placeholder included."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _kinds(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config.get_type(key)


def _explain_key(config: ConfigDict, key: str) -> UserError:
    """Returns the error for a key that cannot be set."""
    known = flatten_config(config)
    members = [name for name in known if name.startswith(f"{key}.")]
    if members:
        meant = explain(key, "config.", "") or f"set one, such as config.{members[0]}"
        return UserError(f"config.{key} is a group of keys: {meant}")
    return unknown_key(key)
