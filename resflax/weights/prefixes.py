"""Prefixes that wrappers put before the names of a network's arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

from resflax.errors import UserError, quantity
from resflax.weights.layouts import FLAX_STEMS, STEMS

# Components that wrappers add anywhere in a name: DataParallel and DistributedDataParallel,
# torch.compile, FSDP and activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Entries that wrappers add beside the network: torch.optim.swa_utils.AveragedModel.
COUNTERS = ("n_averaged",)
STEM_KEYS = {*(f"{stem}.weight" for stem in STEMS), *FLAX_STEMS}
FIRST_STAGES = ("layer1.", "stages.0.", "resnet.encoder.stages.0.", "encoder.stages.0.")
BACKBONE_STEM = "embedder.embedder.convolution.weight"  # Transformers' `ResNetModel`


def strip_prefixes(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Removes the prefixes of wrappers, and any other prefix that all names have in common.

    A prefix that belongs to the names of a network, as "resnet." does to Transformers', is kept.
    Transformers' `ResNetModel`, which has no head, lacks it: it is added.

    Args:
      arrays: arrays by name, in any layout.

    Returns:
      The arrays by their names in a layout, and the prefixes that were removed ("" if none).

    Raises:
      UserError: if a network is under a prefix, and other arrays are not.

    >>> strip_prefixes({"module.conv1.weight": 1, "module.fc.bias": 2, "n_averaged": 3})
    ({'conv1.weight': 1, 'fc.bias': 2}, 'module.')
    """
    names = {key: key for key in arrays if key not in COUNTERS} or {key: key for key in arrays}
    names = {key: _without_wrappers(name) for key, name in names.items()}
    while not _has_stem(names.values()) and (prefix := _common_prefix(names.values())):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if not _has_stem(names.values()):
        _check_groups(names.values())
    removed = next((_removed(*item) for item in names.items() if _has_stem([item[1]])), "")
    if BACKBONE_STEM in names.values():
        names = {key: f"resnet.{name}" for key, name in names.items()}
        removed = removed.removesuffix("resnet.")
    stripped = {name: arrays[key] for key, name in names.items()}
    if len(stripped) < len(names):  # two names would be the same one
        return dict(arrays), ""
    return stripped, removed


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _removed(key: str, name: str) -> str:
    """Returns what was removed from the beginning of a key."""
    return key.removesuffix(name) if key.endswith(name) else ""


def _has_stem(names: Iterable[str]) -> bool:
    return any(name in STEM_KEYS or name == BACKBONE_STEM for name in names)


def _common_prefix(names: Iterable[str]) -> str:
    """Returns the first component of all names, with its dot; "" if they have several."""
    prefixes = {name.partition(".")[0] + "." for name in names}
    is_common = len(prefixes) == 1 and all("." in name for name in names)
    return prefixes.pop() if is_common else ""


def _check_groups(names: Iterable[str]) -> None:
    """Raises `UserError` if the names are those of a network under a prefix, and of others."""
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix, dot, rest = name.partition(".")
        groups.setdefault(prefix + dot, []).append(rest)
    networks = [prefix for prefix, rest in groups.items() if prefix and _is_network(rest)]
    if not networks:
        return
    others = [name for name in names if not name.startswith(networks[0])]
    raise UserError(
        f"the names of a network begin with {' and with '.join(map(repr, networks))}, and those of"
        f" {quantity(len(others), 'other array')} do not ({', '.join(others[:3])}"
        f"{', ...' * (len(others) > 3)}): expected the arrays of one network: save those alone,"
        f" with {networks[0]!r} removed from their names"
    )


def _is_network(names: list[str]) -> bool:
    """Returns whether names, after any common prefixes, are those of a network."""
    while not _has_stem(names) and (prefix := _common_prefix(names)):
        names = [name.removeprefix(prefix) for name in names]
    return _has_stem(names) and any(name.startswith(FIRST_STAGES) for name in names)
