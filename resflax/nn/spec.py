"""An architecture as data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from resflax.errors import UserError, unknown
from resflax.nn.branches import BRANCHES
from resflax.nn.shortcuts import OPTIONS
from resflax.nn.stems import STEMS

CHOICES: dict[str, Mapping[str, Any]] = {"block": BRANCHES, "stem": STEMS, "shortcut": OPTIONS}


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
            if getattr(self, field) not in table:
                raise unknown(field, getattr(self, field), table)
        # Lists come from config files; tuples keep the spec hashable.
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "widths", tuple(self.widths))
        counts = (*self.depths, *self.widths, self.stem_width)
        positive = all(isinstance(n, int) and n > 0 for n in counts)
        if not positive or not self.depths or len(self.depths) != len(self.widths):
            raise UserError(
                f"depths {self.depths}, widths {self.widths}, stem_width {self.stem_width!r}:"
                " expected positive integers, as many widths as depths"
            )
        if self.num_classes < 0:
            raise UserError(f"num_classes is {self.num_classes}: expected 0 or more")

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
