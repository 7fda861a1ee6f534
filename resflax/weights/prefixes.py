"""Prefixes that wrappers put before the names of a network's arrays."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from resflax.errors import UserError, quantity
from resflax.weights.layouts import FLAX_STEMS, HEADS, STEMS

# Components that wrappers add anywhere in a name: DataParallel and DistributedDataParallel,
# torch.compile, FSDP and activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Entries that wrappers add to those of the network: torch.optim.swa_utils.AveragedModel.
COUNTERS = ("n_averaged",)
# Names of weights that are averaged over the steps of training.
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?|avg)(?![a-z])")
STEM_KEYS = {*(f"{stem}.weight" for stem in STEMS), *FLAX_STEMS}
FIRST_STAGES = ("layer1.", "stages.0.", "resnet.encoder.stages.0.", "encoder.stages.0.", "4.0.")
BACKBONE_STEM = "embedder.embedder.convolution.weight"  # Transformers' `ResNetModel`
MAX_NAMES = 3


class Stripped(NamedTuple):
    """The arrays of a network by their names in a layout.

    Attributes:
      arrays: the arrays by name.
      prefix: what was removed from the beginning of their names; "" for nothing.
      left_out: names of arrays that are not the network's.
    """

    arrays: dict[str, Any]
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns what was removed and left out, in words; "" for nothing."""
        parts = [f"without the prefix {self.prefix!r} of their names"] * bool(self.prefix)
        if self.left_out:
            count = quantity(len(self.left_out), "other array")
            parts.append(f"without {count} ({_join(self.left_out)})")
        return " and ".join(parts)


def strip_prefixes(arrays: Mapping[str, Any]) -> Stripped:
    """Removes the prefixes of wrappers, and any other prefix that all names have in common.

    A prefix that belongs to the names of a network, as "resnet." does to Transformers', is kept.
    Transformers' `ResNetModel`, which has no head, lacks it: it is added. Of several prefixes, that
    of a network with its head is taken: the averaged one (EMA, SWA) if there are several.

    Args:
      arrays: arrays by name, in any layout.

    Raises:
      UserError: if there are several networks, or one without a head together with other arrays,
        which may be its head.

    >>> stripped = strip_prefixes({"module.conv1.weight": 1, "module.fc.bias": 2, "n_averaged": 3})
    >>> stripped.arrays, str(stripped)
    ({'conv1.weight': 1, 'fc.bias': 2}, "without the prefix 'module.' of their names")
    """
    names = {key: key for key in arrays if key not in COUNTERS} or {key: key for key in arrays}
    names = {key: _without_wrappers(name) for key, name in names.items()}
    left_out = list[str]()
    while not _has_stem(names.values()):
        prefix = _common_prefix(names.values()) or _network_prefix(names.values())
        if not prefix:
            break
        left_out += [key for key, name in names.items() if not name.startswith(prefix)]
        names = {
            key: name.removeprefix(prefix) for key, name in names.items() if name.startswith(prefix)
        }
    removed = next((_removed(*item) for item in names.items() if _has_stem([item[1]])), "")
    if BACKBONE_STEM in names.values():
        names = {key: f"resnet.{name}" for key, name in names.items()}
        removed = removed.removesuffix("resnet.")
    stripped = {name: arrays[key] for key, name in names.items()}
    if len(stripped) < len(names):  # two names would be the same one
        return Stripped(dict(arrays))
    return Stripped(stripped, removed, tuple(left_out))


def is_averaged(key: object) -> bool:
    """Returns whether the key of a checkpoint, or a prefix, is that of averaged weights.

    >>> is_averaged("state_dict_ema"), is_averaged("schema")
    (True, False)
    """
    return bool(AVERAGED.search(str(key).lower()))


def is_network(names: Iterable[str]) -> bool:
    """Returns whether names, after any common prefixes, are those of a network."""
    names = _without_common_prefixes([_without_wrappers(name) for name in names])
    is_torch = any(name.startswith(FIRST_STAGES) for name in names)
    return _has_stem(names) and (is_torch or not FLAX_STEMS.isdisjoint(names))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _without_common_prefixes(names: list[str]) -> list[str]:
    while not _has_stem(names) and (prefix := _common_prefix(names)):
        names = [name.removeprefix(prefix) for name in names]
    return names


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


def _network_prefix(names: Iterable[str]) -> str:
    """Returns the prefix of the one network among arrays with several; "" if there is none.

    Raises:
      UserError: if there are several, or other arrays may be its head.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix, dot, rest = name.partition(".")
        groups.setdefault(prefix + dot, []).append(rest)
    networks = {p: rest for p, rest in groups.items() if p.endswith(".") and is_network(rest)}
    averaged = [prefix for prefix in networks if is_averaged(prefix)]
    if not networks:
        return ""
    [prefix, *others] = averaged or networks
    if others:
        raise UserError(
            f"the names of {len(networks)} networks begin with"
            f" {' and with '.join(map(repr, networks))}: expected the arrays of one network: save"
            f" those alone, such as all that begin with {prefix!r}"
        )
    left_out = [name for name in names if not name.startswith(prefix)]
    if HEADS.isdisjoint(_without_common_prefixes(networks[prefix])):
        raise UserError(
            f"the names of a network without a head begin with {prefix!r}, and those of"
            f" {quantity(len(left_out), 'other array')} do not ({_join(left_out)}): expected the"
            f" arrays of one network: save those alone, with {prefix!r} removed from their names"
        )
    return prefix


def _join(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MAX_NAMES]) + ", ..." * (len(names) > MAX_NAMES)
