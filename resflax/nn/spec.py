"""An architecture as data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from resflax.errors import UserError, unknown
from resflax.nn.branches import BRANCHES
from resflax.nn.shortcuts import OPTIONS
from resflax.nn.stems import STEMS

CHOICES: dict[str, Mapping[str, Any]] = {"block": BRANCHES, "stem": STEMS, "shortcut": OPTIONS}

# Far above what anybody trains; a slip of the hand should not take the machine down.
MOST_BLOCKS, MOST_CHANNELS, MOST_CLASSES = 10_000, 65_536, 10_000_000


def _check_count(field: str, value: object, least: int, most: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:  # type: ignore[operator]
        raise UserError(f"{field} holds {value!r}: expected integers from {least} to {most}")


@dataclass(frozen=True)
class Spec:
    """A residual network, or its plain twin, as data that one engine (`ResNet`) runs.

    Attributes:
      depths: blocks in each stage; each stage but the first halves the image.
      widths: channels of each stage's blocks before expansion.
      block: the branch, a name in `BRANCHES`: "basic", "bottleneck" (v1.5), "bottleneck_v1".
      stem: a name in `STEMS`: "imagenet" or "cifar".
      stem_width: channels after the stem.
      shortcut: a name in `OPTIONS`: "A", "B", "C" of the paper, or "none" for the plain net.
      preact: pre-activation (v2, 2016) instead of post-activation (v1, 2015).
      zero_init: start every branch at zero, by its last norm's scale (by its last kernel if
        `preact`), so that a block begins as its shortcut; as timm and Flax's example do, and not
        the paper. A plain net has no shortcut to begin as: it begins as ever.
      num_classes: outputs of the head; 0 for pooled features.

    Raises:
      UserError: on a name that is not known or a combination that cannot be.

    >>> Spec(depths=(2, 2), widths=(8, 16), stem="cifar", stem_width=8, block="basic").min_image
    2
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: str = "bottleneck"
    stem: str = "imagenet"
    stem_width: int = 64
    shortcut: str = "B"
    preact: bool = False
    zero_init: bool = True
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for field, table in CHOICES.items():
            value = getattr(self, field)
            if not isinstance(value, str) or value not in table:
                raise unknown(field, value, table)
        for field in ("preact", "zero_init"):
            if not isinstance(getattr(self, field), bool):
                raise UserError(f"{field} is {getattr(self, field)!r}: expected True or False")
        for field, most in (("depths", MOST_BLOCKS), ("widths", MOST_CHANNELS)):
            value = getattr(self, field)
            if not isinstance(value, list | tuple) or not value:
                raise UserError(f"{field} is {value!r}: expected a tuple of integers")
            for number in value:
                _check_count(field, number, 1, most)
            # Lists come from config files; tuples keep the spec hashable.
            object.__setattr__(self, field, tuple(value))
        if len(self.depths) != len(self.widths):
            raise UserError(f"depths {self.depths} and widths {self.widths} differ in length")
        _check_count("stem_width", self.stem_width, 1, MOST_CHANNELS)
        _check_count("num_classes", self.num_classes, 0, MOST_CLASSES)

    @property
    def min_image(self) -> int:
        """The smallest image side, in pixels, on which no stride acts on a single pixel."""
        return 2 ** (STEMS[self.stem].halvings + len(self.depths) - 1) // 2 + 1

    def override(self, **overrides: Any) -> "Spec":
        """This spec with some of its fields changed.

        Raises:
          UserError: on a name that is not a field.
        """
        known = [f.name for f in fields(self)]
        for name in overrides:
            if name not in known:
                raise UserError(f"unknown field {name!r} of a spec: expected {', '.join(known)}")
        return replace(self, **overrides)
