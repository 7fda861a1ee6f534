"""Valid values of `config.ensemble`, alone and together with other keys."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resflax.data.augment.mix import MAX_ALPHA
from resflax.errors import UserError, quantity
from resflax.train.config import build_augment, build_mix, build_model, crop_kind
from resflax.train.ensemble import (
    MEMBER_KEYS,
    SHARED,
    is_ensemble,
    member_config,
    seeds_by_use,
)
from resflax.train.rule import (
    LESS_THAN_ONE,
    MAX_SEED,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Combination,
    Rule,
    check_combinations,
    check_type,
)

GROUP = "ensemble."
ON_DIVERGED = ("drop", "freeze", "stop")
# Valid values of each member's seed and of `MEMBER_KEYS`.
MEMBER_RULES: dict[str, Rule] = {
    "seeds": SEED,
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "label_smoothing": LESS_THAN_ONE,
    "mixup": Rule("0 to 1e6", lambda v: 0 <= v <= MAX_ALPHA),
    "drop_path": LESS_THAN_ONE,
}
# The invalid combinations of an ensemble with other keys, and their messages.
COMBINATIONS: tuple[Combination, ...] = (
    (
        lambda c: not c.epochs,
        "config.epochs is 0 with config.ensemble.size={c.ensemble.size}, which needs training:"
        " expected 1 epoch or more",
    ),
    (
        lambda c: c.mesh.fsdp > 1,
        "config.mesh.fsdp is {c.mesh.fsdp} with config.ensemble.size={c.ensemble.size}, whose"
        " states are split by member: expected 1",
    ),
    (
        lambda c: bool(c.ensemble.learning_rate) and c.head_learning_rate > 0,
        "config.ensemble.learning_rate is given with config.head_learning_rate="
        "{c.head_learning_rate}, which is the same for all members: expected one of them",
    ),
    (
        lambda c: not c.ensemble.seeds and c.seed + c.ensemble.size - 1 > MAX_SEED,
        "config.seed is {c.seed}: expected room for the seeds of {c.ensemble.size} members below"
        " 2**32, or config.ensemble.seeds",
    ),
)


def check_ensemble(config: ConfigDict) -> None:
    """Checks `config.ensemble` for an otherwise valid config.

    Raises:
      UserError: if a list does not have one valid value per member, a key does not fit an ensemble,
        or two members would be equal.
    """
    for name, rule in MEMBER_RULES.items():
        _check_values(name, config.ensemble[name], config.ensemble.size, rule)
    if not is_ensemble(config):
        return
    check_combinations(COMBINATIONS, config)
    if config.ensemble.drop_path and (config.model or not config.pretrained):
        largest = max(range(config.ensemble.size), key=config.ensemble.drop_path.__getitem__)
        build_model(member_config(config, largest))
    _check_distinct(config)


def _check_values(name: str, values: Any, size: int, rule: Rule) -> None:
    key = f"config.{GROUP}{name}"
    if not values or size == 1:
        return
    if len(values) != size:
        raise UserError(
            f"{key} has {quantity(len(values), 'value')}, {values!r}, but"
            f" config.ensemble.size is {size}: expected one value per member"
        )
    for k, value in enumerate(values):
        check_type(f"{key}[{k}]", value, int if name == "seeds" else float)
        rule.check(f"{key}[{k}]", value)


def is_random(config: ConfigDict) -> bool:
    """Returns whether training changes images or the network at random, by `TrainState.seed`.

    With `config.model` "", the network is that of the weights, and may be.
    """
    random_crop = config.data.image_size and crop_kind(config) not in ("squash", "none")
    if random_crop or config.ensemble.drop_path or config.ensemble.mixup:
        return True
    if build_augment(config) or build_mix(config) or not config.model:
        return True
    return build_model(config).spec.needs_rng


def _check_distinct(config: ConfigDict) -> None:
    """Raises `UserError` if two members would have the same seeds and values."""
    uses = seeds_by_use(config)
    lists = [np.float32(config.ensemble[name]) for name in MEMBER_KEYS if config.ensemble[name]]
    augment = uses.augment if is_random(config) else (0,) * len(uses.augment)
    seen: dict[tuple[Any, ...], int] = {}
    for k, member in enumerate(zip(uses.init, uses.order, augment, *lists, strict=True)):
        first = seen.setdefault(member, k)
        if first != k:
            raise UserError(f"members {first} and {k} would be equal{_describe_shared(config)}")


def _describe_shared(config: ConfigDict) -> str:
    """Returns why members are equal, and what to do: the end of an error message."""
    shared = [f"config.ensemble.{key}" for key in SHARED.values() if config.ensemble[key]]
    reason = f" with {' and '.join(shared)}" if shared else ""
    if shared and not is_random(config):
        reason += ", and without random augmentation, drop path or dropout"
    return (
        f"{reason}: expected other config.ensemble.seeds, a list such as"
        f" config.ensemble.learning_rate, or one of {', '.join(SHARED.values())} set to False"
    )
