"""Differences between the config of a run and the one it is resumed with."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any


def flatten_config(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every value of a nested dictionary (or `ConfigDict`) by its dotted key.

    >>> flatten_config({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def config_diff(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    resumable: Sequence[str] = (),
    increasable: Mapping[str, float] = MappingProxyType({}),
    movable: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """Lists the keys that differ between two configs of JSON values, with both values.

    Args:
      old: config of the existing run.
      new: config to resume it with.
      resumable: prefixes of keys that may differ.
      increasable: keys that may be larger than before, with the number that 0 stands for.
      movable: keys whose values name files, with the prefixes of those that may have moved.

    >>> config_diff({"seed": 0, "epochs": 9}, {"seed": 1, "epochs": 10}, increasable={"epochs": 0})
    ['seed 0, now 1']
    >>> config_diff({"epochs": 9}, {"epochs": 8}, increasable={"epochs": 0})
    ['epochs 9, now 8, which can only increase']
    >>> config_diff({"data": "folder:a"}, {"data": "folder:b"}, movable={"data": ["folder:"]})
    []
    """
    before, after = flatten_config(old), flatten_config(new)

    def is_raised(key: str) -> bool:
        old, new = (flat.get(key, 0) or increasable[key] for flat in (before, after))
        return old < new

    def may_differ(key: str) -> bool:
        if key.startswith(tuple(resumable)) or before.get(key) == after.get(key):
            return True
        values = (str(before.get(key)), str(after.get(key)))
        if any(all(v.startswith(prefix) for v in values) for prefix in movable.get(key, ())):
            return True
        return key in increasable and is_raised(key)

    return [
        f"{key} {before.get(key)!r}, now {after.get(key)!r}"
        + (", which can only increase" if key in increasable else "")
        for key in sorted({*before, *after})
        if not may_differ(key)
    ]
