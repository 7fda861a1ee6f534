"""Errors for keys and flags that do not exist, with what is meant."""

import difflib
from collections.abc import Iterable, Mapping

from resflax.errors import UserError
from resflax.train.config_keys import KEYS
from resflax.train.ensemble import MEMBER_KEYS
from resflax.train.key_aliases import ADVICE, ALIASES, FLAGS

GROUP = "ensemble."
# Keys of an ensemble's members, by those of a single network.
_MEMBERS = {key: f"{GROUP}{name}" for name, key in MEMBER_KEYS.items()}


def canonical(name: str) -> str:
    """Returns the last part of a name, without case, underscores and hyphens.

    >>> canonical("optim.Num-Epochs")
    'numepochs'
    """
    return name.rpartition(".")[2].replace("_", "").replace("-", "").lower()


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    """Returns the target of each canonical name of a table from targets to names."""
    return {canonical(name): key for key, names in table.items() for name in names.split()}


# Names in a group that say what the group is, such as "optimizer.name".
KINDS = ("name", "type", "kind", "class", "_target_")
# The key, flag or advice for each canonical name; keys that exist, in another group, come last.
_ADVICE = _by_name({text: names for names, text in ADVICE.items()})
_FLAGS = _by_name({flag: f"{flag} {names}" for flag, names in FLAGS.items()})
_SINGLE = [key for key in KEYS if not key.startswith(GROUP) or key not in _MEMBERS.values()]
_KEYS = _by_name({key: key for key in reversed(_SINGLE)}) | _by_name(ALIASES)


def unknown_key(key: str) -> UserError:
    """Returns the error for a key that no config has.

    >>> print(unknown_key("optim.lr"))
    unknown config key 'config.optim.lr': did you mean config.learning_rate?
    >>> print(unknown_key("ensemble.batch_size"))
    config.ensemble.batch_size: batch_size is the same for all members, which can differ in \
learning_rate, weight_decay, label_smoothing, mixup, drop_path and seeds: set config.batch_size
    """
    name = key.removeprefix(GROUP)
    same = [k for k in KEYS if not k.startswith(GROUP) and name in (k, k.rpartition(".")[2])]
    if key.startswith(GROUP) and same:
        return UserError(
            f"config.{key}: {name} is the same for all members, which can differ in"
            f" {', '.join(MEMBER_KEYS)} and seeds: set config.{same[0]}"
        )
    meant = explain(key, "config.", "") or "resflax train --help lists the keys"
    return UserError(f"unknown config key 'config.{key}': {meant}")


def unknown_flag(word: str, next_word: str | None, flags: Iterable[str]) -> UserError:
    """Returns the error for a word of the command line that is not a flag.

    Args:
      word: the word, with its value if it has one.
      next_word: the next word, its value if it has none.
      flags: names of the valid flags.

    >>> print(unknown_flag("--lr", "0.1", ["workdir"]))
    unknown flag '--lr': did you mean --config.learning_rate=0.1?
    >>> print(unknown_flag("--wrkdir=runs/a", None, ["workdir"]))
    unknown flag '--wrkdir=runs/a': did you mean --workdir=runs/a?
    """
    name, separator, text = word.lstrip("-").partition("=")
    value = text if separator or next_word is None or next_word.startswith("-") else next_word
    flags = list(flags)
    similar = difflib.get_close_matches(name, flags, n=1, cutoff=0.8)
    if similar:
        flag = f"--{similar[0]}={value}" if value else f"--{similar[0]}"
        return UserError(f"unknown flag {word!r}: did you mean {flag}?")
    meant = explain(name, "--config.", value)
    meant = meant or (f"expected --config.KEY=VALUE, {', '.join(f'--{flag}' for flag in flags)}")
    return UserError(f"unknown flag {word!r}: {meant}")


def explain(name: str, prefix: str, value: str) -> str:
    """Returns what a name means that no key or flag has; "" if that is not known.

    Args:
      name: of a key or a flag.
      prefix: before the name of a key.
      value: text that a flag was given, "" if none.
    """
    found, names = canonical(name), {**_KEYS, **_FLAGS, **_ADVICE}
    if name.startswith(GROUP) and (member := _MEMBERS.get(_KEYS.get(found, ""))):
        return _did_you_mean(member, prefix, value)
    group, _, last = name.rpartition(".")
    if last in KINDS and canonical(group) in _KEYS:
        return _did_you_mean(_KEYS[canonical(group)], prefix, value)
    if found not in names:
        similar = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.85)
        if similar:
            return _did_you_mean(similar[0], prefix, value)
        found = next(iter(difflib.get_close_matches(found, names, n=1, cutoff=0.75)), "")
    if found in _ADVICE:
        return _ADVICE[found]
    if found in _FLAGS:
        return f"did you mean --{_FLAGS[found]}{f'={value}' if value else ''}?"
    return _did_you_mean(_KEYS[found], prefix, value) if found in _KEYS else ""


def _did_you_mean(key: str, prefix: str, value: str) -> str:
    suffix = f"={value}" if value and _fits(key, value) else ""
    return f"did you mean {prefix}{key}{suffix}?"


def _fits(key: str, text: str) -> bool:
    """Returns whether a text may be a value of a key: another tool's may have another form."""
    row = KEYS[key]
    kind = row.kind or type(row.default)
    if kind is str:  # a choice of other tools, such as --pretrained=True
        return text.lower() not in ("true", "false", "none")
    try:
        return kind in (int, float) and kind(text) is not None
    except ValueError:
        return False
