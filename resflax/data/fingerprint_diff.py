"""Differences between two fingerprints of a dataset, in words."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from resflax.data.fingerprint import SAMPLE_SIZE, Fingerprint, sample_rank
from resflax.data.source import Source
from resflax.errors import first_names, quantity

# What identifies the examples on disk, whether or not they were read into memory.
SOURCE_KEYS = ("files", "sample", "whole", "version")


class _Example(NamedTuple):
    """An example of a sample: the name of its class and a digest of its contents."""

    class_name: str
    digest: str


_Sample = dict[str, _Example]


def fingerprint_diff(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Lists what differs between two results of `Dataset.fingerprint`, in words.

    >>> old = {"classes": ["cat", "dog"], "splits": {"train": {"examples": 3, "per_class": [1, 2]}}}
    >>> new = {"classes": ["cat", "dog"], "splits": {"train": {"examples": 5, "per_class": [3, 2]}}}
    >>> fingerprint_diff(old, new)
    ["2 examples added to class 'cat' of the train split"]
    """
    changes = list(_class_changes(old["classes"], new["classes"]))
    for verb, first, second in (("added", new, old), ("removed", old, new)):
        names = [name for name in first["splits"] if name not in second["splits"]]
        changes += [f"the {name} split was {verb}" for name in names]
    for name, split in new["splits"].items():
        if name in old["splits"]:
            changes += _split_changes(name, old, old["splits"][name], new, split)
    return changes


def is_same_data(recorded: Fingerprint, sources: Mapping[str, Source]) -> bool:
    """Returns whether sources have the examples of a result of `Dataset.fingerprint`.

    Args:
      recorded: the fingerprint, of which `SOURCE_KEYS` are compared.
      sources: the splits by name.
    """
    new = {name: source.fingerprint() for name, source in sources.items()}
    classes = list(next(iter(sources.values())).classes)
    if recorded["classes"] != classes or recorded["splits"].keys() != new.keys():
        return False
    return all(
        recorded["splits"][name].get(key) == value
        for name, split in new.items()
        for key, value in split.items()
        if key in SOURCE_KEYS
    )


def _class_changes(old: list[str], new: list[str]) -> Iterator[str]:
    if old == new:
        return
    removed, added = [n for n in old if n not in new], [n for n in new if n not in old]
    if not removed and not added:
        yield f"the classes are in another order, {_names(new)}"
    elif len(removed) == len(added):
        yield f"classes {_names(removed)} renamed to {_names(added)}"
    else:
        for verb, names in (("removed", removed), ("added", added)):
            if names:
                yield f"classes {_names(names)} {verb}"


def _split_changes(
    name: str, old: Fingerprint, before: Fingerprint, new: Fingerprint, after: Fingerprint
) -> list[str]:
    """Lists the changes of one split, `before` and `after`, of the datasets `old` and `new`."""
    if before == after or _has_equal_arrays(before, after):
        return []
    changes = list(_count_changes(name, _per_class(old, before), _per_class(new, after)))
    if old["classes"] == new["classes"] and ("sample" in before) == ("sample" in after):
        samples = _sample(before, old["classes"]), _sample(after, new["classes"])
        found = _sample_changes(*samples, are_files="files" in before)
        changes += [f"in the {name} split, {change}" for change in found]
    if not changes and before["examples"] != after["examples"]:
        examples = quantity(after["examples"], "example")
        return [f"the {name} split has {examples} instead of {before['examples']}"]
    keys = (key for key in ("files", "contents", "version") if before.get(key) != after.get(key))
    return changes or [f"the {key} of the {name} split changed" for key in keys]


def _has_equal_arrays(before: Fingerprint, after: Fingerprint) -> bool:
    """Returns whether two splits in memory are equal, whatever the names of their files."""
    return "contents" in before and before["contents"] == after.get("contents")


def _per_class(dataset: Fingerprint, split: Fingerprint) -> dict[str, int]:
    return dict(zip(dataset["classes"], split.get("per_class", ()), strict=False))


def _count_changes(name: str, before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[str]:
    """Yields the changes of the numbers of examples by class name."""
    changed = [(c, after[c] - before[c]) for c in before if after.get(c, before[c]) != before[c]]
    for c, difference in changed[:3]:
        verb = "added to" if difference > 0 else "removed from"
        yield f"{quantity(abs(difference), 'example')} {verb} class {c!r} of the {name} split"
    if len(changed) > 3:
        yield f"{len(changed) - 3} more classes of the {name} split changed"


def _sample(split: Fingerprint, classes: Sequence[str]) -> _Sample:
    """Returns the sample of a split; of arrays without files, its classes."""
    rows: Mapping[str, Sequence[Any]] = split.get("sample", {})
    if not rows:
        digests = split.get("class_contents", ())
        rows = {f"class {classes[i]}": (i, digest) for i, digest in enumerate(digests)}
    return {name: _Example(classes[label], digest) for name, (label, digest) in rows.items()}


def _sample_changes(old: _Sample, new: _Sample, *, are_files: bool) -> Iterator[str]:
    """Yields what differs between two samples, with the first names of each kind."""
    both = [name for name in old if name in new]
    relabeled = [name for name in both if old[name].class_name != new[name].class_name]
    if relabeled:
        first, more = relabeled[0], len(relabeled) - 1
        change = f"{old[first].class_name!r} before and {new[first].class_name!r} now"
        others = f", and {quantity(more, 'other')} changed labels" if more else ""
        yield f"the label of {first!r} is {change}{others}"
    changed = [n for n in both if n not in relabeled and old[n].digest != new[n].digest]
    limit = min(_limit(old), _limit(new)) if are_files else (-1.0, 0.0)
    removed = [name for name in old if name not in new and sample_rank(name) <= limit]
    added = [name for name in new if name not in old and sample_rank(name) <= limit]
    swapped = _swapped_classes(changed + removed, old, new)
    if swapped:
        pairs = "; ".join(f"{a!r} and {b!r}" for a, b in sorted(swapped)[:3])
        yield f"the examples of these classes are swapped: {pairs}"
    names = {name for pair in swapped for name in pair}
    renamed = dict(_renamed(removed, added, old, new))
    rows = {
        "other contents": [n for n in changed if old[n].class_name not in names],
        "renamed": [f"{n} -> {to}" for n, to in renamed.items() if old[n].class_name not in names],
        "removed": [n for n in removed if n not in renamed],
        "added": [n for n in added if n not in renamed.values()],
    }
    for change, examples in rows.items():
        if examples:
            yield f"{change}: {_names(examples)}"


def _swapped_classes(changed: Sequence[str], old: _Sample, new: _Sample) -> set[tuple[str, str]]:
    """Returns the pairs of classes of which each has examples that the other one had."""
    class_of = {example.digest: example.class_name for example in new.values()}
    moves = Counter((old[n].class_name, class_of.get(old[n].digest, "")) for n in changed)
    return {(a, b) for a, b in moves if a < b and (b, a) in moves}


def _renamed(
    removed: Sequence[str], added: Sequence[str], old: _Sample, new: _Sample
) -> Iterator[tuple[str, str]]:
    remaining = {new[name].digest: name for name in added}
    for name in removed:
        if target := remaining.pop(old[name].digest, ""):
            yield name, target


def _limit(sample: _Sample) -> tuple[float, float]:
    """Returns the highest rank up to which a sample has all files."""
    is_complete = len(sample) < SAMPLE_SIZE
    return (float("inf"), 0.0) if is_complete else max(map(sample_rank, sample))


def _names(names: Sequence[str]) -> str:
    return first_names(map(repr, names))
