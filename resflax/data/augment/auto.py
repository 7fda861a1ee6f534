"""Augmentation policies by name: timm's strings, TrivialAugment, AutoAugment."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from jaxtyping import Array

from resflax.data.augment.augmix import MAX_DEPTH, AugMix, augmix
from resflax.data.augment.levels import (
    AUGMIX,
    CHOICES,
    INFINITY,
    TIMM,
    TIMM_INCREASING,
)
from resflax.data.augment.policies import POLICIES, apply_sub_policy, three_augment
from resflax.data.augment.rand import TRIVIAL_AUGMENT, RandPolicy, apply_policy
from resflax.errors import UserError

Policy = Callable[[Array, Array], Array]

EXAMPLES = "rand-m9-mstd0.5-inc1, augmix-m3-w3, trivial, 3a, " + ", ".join(POLICIES)


class Section(NamedTuple):
    """A section of a string such as `rand-m9`: a letter and a number.

    Attributes:
      default: its value if it is not given.
      low: smallest value.
      high: largest value.
      is_integer: whether the value is a whole number.
    """

    default: float
    low: float
    high: float
    is_integer: bool = False


RAND_SECTIONS = {
    "m": Section(10, 0, 30),
    "n": Section(2, 1, 100, is_integer=True),
    "mstd": Section(0, 0, 1e6),
    "mmax": Section(10, 1, 30),
    "inc": Section(0, 0, 1, is_integer=True),
    "p": Section(0.5, 0, 1),
}
AUGMIX_SECTIONS = {
    "m": Section(3, 0, 10),
    "w": Section(3, 1, 100, is_integer=True),
    "d": Section(0, 1, 100, is_integer=True),  # 0: 1 to 3, at random
    "a": Section(1, 1e-3, 1e3),
    "mstd": Section(INFINITY, 0, 1e6),
}
UNIFORM_STD = 100  # timm: a larger `mstd` draws magnitudes uniformly


def auto_augment(name: str) -> Policy:
    """Returns the policy `(key, image) -> image` of a name, for uint8 images of any size.

    Args:
      name: "trivial", "3a", a row of `POLICIES`, or timm's "rand-m9-n2-mstd0.5-inc1" or
        "augmix-m3-w3".

    Raises:
      UserError: if there is no such policy.
    """
    if name == "trivial":
        return partial(apply_policy, policy=TRIVIAL_AUGMENT)
    if name == "3a":
        return three_augment
    if name in POLICIES:
        return partial(apply_sub_policy, policy=POLICIES[name])
    if name == "rand" or name.startswith("rand-"):
        return partial(apply_policy, policy=parse_rand(name))
    if name == "augmix" or name.startswith("augmix-"):
        return partial(augmix, settings=parse_augmix(name))
    raise UserError(f"auto_augment is {name!r}: expected a policy such as {EXAMPLES}")


def parse_sections(text: str, sections: Mapping[str, Section]) -> tuple[dict[str, float], str]:
    """Returns the values of the sections of a string, and the choice of operations after "t".

    Raises:
      UserError: if a section is not known, or its value not valid.
    """
    values, choice = {name: row.default for name, row in sections.items()}, ""
    for part in text.split("-")[1:]:
        match = re.fullmatch(r"([a-z]+)(\d+\.?\d*)", part)
        if sections is RAND_SECTIONS and part.startswith("t") and part[1:] in CHOICES:
            choice = part[1:]
        elif match and match[1] in sections and _is_valid(sections[match[1]], float(match[2])):
            values[match[1]] = float(match[2])
        else:
            known = [f"{name}{row.default:g}" for name, row in sections.items()]
            raise UserError(
                f"auto_augment is {text!r}, where {part!r} is not valid: expected sections such"
                f" as {', '.join(known)}"
            )
    return values, choice


def _is_valid(section: Section, value: float) -> bool:
    is_integer = not section.is_integer or value == int(value)
    return section.low <= value <= section.high and is_integer


def parse_augmix(text: str) -> AugMix:
    """Returns the settings of timm's string for AugMix, with timm's defaults.

    The sections, in any order: `m` largest magnitude (3), `w` chains (3), `d` operations of a chain
    (1 to 3 at random), `a` alpha (1), `mstd` standard deviation of the magnitude, which is else
    uniform up to `m`.

    Raises:
      UserError: if a section is not known.

    >>> settings = parse_augmix("augmix-m5-w4-d2")
    >>> settings.chain.magnitudes, settings.width, settings.chain.layers
    ((5.0,), 4, 2)
    """
    values, _ = parse_sections(text, AUGMIX_SECTIONS)
    std, depth = values["mstd"], int(values["d"])
    chain = RandPolicy(
        AUGMIX,
        layers=depth or MAX_DEPTH,
        magnitudes=(values["m"],),
        std=INFINITY if std > UNIFORM_STD else std,
    )
    return AugMix(chain, int(values["w"]), is_random_depth=not depth, alpha=values["a"])


def parse_rand(text: str) -> RandPolicy:
    """Returns the policy of timm's string for RandAugment, with timm's defaults.

    The sections, in any order: `m` magnitude (10), `n` layers (2), `mstd` standard deviation of the
    magnitude (0; above 100: uniform up to `m`), `mmax` its limit (10), `inc` 1 for operations that
    change more with the magnitude, `p` probability of an operation (0.5), `t` the operations:
    "weights", "3a" or "3aw".

    Raises:
      UserError: if a section is not known.

    >>> policy = parse_rand("rand-m7-mstd0.5-inc1")
    >>> policy.magnitudes, policy.std, policy.layers, policy.probability, len(policy.levels)
    ((7.0,), 0.5, 2, 0.5, 15)
    """
    values, choice = parse_sections(text, RAND_SECTIONS)
    is_uniform = values["mstd"] > UNIFORM_STD
    magnitude = values["m"] if values["mstd"] else min(values["m"], values["mmax"])
    levels = dict(CHOICES[choice]) if choice else None
    all_levels = TIMM_INCREASING if values["inc"] else TIMM
    return RandPolicy(
        tuple(levels or all_levels),
        layers=int(values["n"]),
        magnitudes=(magnitude,),
        std=INFINITY if is_uniform else values["mstd"],
        maximum=values["mmax"],
        probability=values["p"],
        weights=tuple(levels.values()) if levels and choice != "3a" else (),
    )
