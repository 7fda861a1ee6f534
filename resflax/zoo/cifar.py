"""The networks for small images: He et al. 2015 (section 4.2) and 2016. Any depth of the form.

A name is a prefix and a depth. Three stages of n blocks and two more layers make the depth
`6n + 2` for basic blocks (two layers each) and `9n + 2` for bottlenecks (three). Wide ResNets count
the two projections as layers, `6n + 4`, and carry the factor of their widths in the name.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from resflax.errors import UserError
from resflax.nn import BLOCKS, Spec


def _spec(block: str, n: int, **fields: object) -> Spec:
    base = Spec((n, n, n), (16, 32, 64), block, "cifar", 16, shortcut="A", num_classes=10)
    return base.override(**fields)


def _preact_block(depth: int) -> str:
    # 20, 110 and 164 have both forms; the 2016 paper's 110 is basic, its 164 and 1001 bottlenecks.
    fits_basic, fits_bottleneck = (depth - 2) % 6 == 0, (depth - 2) % 9 == 0
    return "bottleneck_v1" if fits_bottleneck and (depth >= 164 or not fits_basic) else "basic"


class Family(NamedTuple):
    """A row of `FAMILIES`: the depths that are listed, and the spec of any depth."""

    depths: tuple[int, ...]
    block: Callable[[int], str]
    fields: Callable[[str], dict[str, object]]

    def spec(self, depth: int) -> Spec | None:
        """The spec of that depth, or None if it has not the right form."""
        block = self.block(depth)
        n, rest = divmod(depth - 2, 3 * len(BLOCKS[block]))
        return None if rest or n < 1 else _spec(block, n, **self.fields(block))

    def nearest(self, depth: int) -> list[int]:
        """The depths of the right form next below and next above `depth`."""
        below = next((d for d in range(depth - 1, 0, -1) if self.spec(d)), None)
        above = next(d for d in range(max(depth, 0) + 1, max(depth, 0) + 20) if self.spec(d))
        return [d for d in (below, above) if d is not None]


DEPTHS = (20, 32, 44, 56, 110)

FAMILIES: dict[str, Family] = {
    "cifar_resnet": Family((*DEPTHS, 1202), lambda depth: "basic", lambda block: {}),
    "cifar_plain": Family(DEPTHS, lambda depth: "basic", lambda block: {"shortcut": "none"}),
    "cifar_preact_resnet": Family(
        (*DEPTHS, 164, 1001),
        _preact_block,
        # The 2016 paper's bottlenecks project where shapes differ; its basic nets pad (option A).
        lambda block: {"preact": True, "shortcut": "A" if block == "basic" else "B"},
    ),
}

SPECS: dict[str, Spec] = {
    f"{prefix}{depth}": spec
    for prefix, family in FAMILIES.items()
    for depth in family.depths
    if (spec := family.spec(depth))
}


def wide(depth: int, factor: int) -> Spec:
    """WRN-depth-factor (Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1).

    Raises:
      UserError: if the depth has not the form 6n + 4.
    """
    n, rest = divmod(depth - 4, 6)
    if rest or n < 1:
        below = max(depth - 4, 6) // 6 * 6 + 4
        near = " and ".join(f"wrn{d}_{factor}" for d in (below, below + 6))
        raise UserError(f"no 'wrn{depth}_{factor}': the depth must be 6n + 4; try {near}")
    widths = tuple(factor * width for width in (16, 32, 64))
    return _spec("basic", n, widths=widths, preact=True, shortcut="B")


def _resnext29(groups: int, base_width: int) -> Spec:
    """Xie et al. 2016 (arXiv:1611.05431), section 5.3."""
    return Spec((3, 3, 3), (64, 128, 256), stem="cifar", groups=groups, base_width=base_width,
                num_classes=10)  # fmt: skip


SPECS |= {f"wrn{d}_{k}": wide(d, k) for d, k in ((16, 4), (16, 8), (28, 10), (40, 2), (40, 4))}
SPECS |= {
    f"cifar_resnext29_{groups}x{width}d": _resnext29(groups, width)
    for groups, width in ((8, 64), (16, 64))
}


def parse(name: str) -> Spec | None:
    """The spec that a name of these families means; None if it is not of them.

    Raises:
      UserError: if the name is of a family, but the depth has not its form.

    >>> parse("cifar_resnet26").depths
    (4, 4, 4)
    """
    if match := re.fullmatch(r"wrn([1-9][0-9]{0,5})_([1-9][0-9]{0,3})", name):
        return wide(int(match[1]), int(match[2]))
    match = re.fullmatch(r"(\D+)([1-9][0-9]{0,5})", name)
    if not match or match[1] not in FAMILIES:
        return None
    prefix, depth = match[1], int(match[2])
    family = FAMILIES[prefix]
    spec = family.spec(depth)
    if spec is None:
        near = " and ".join(f"{prefix}{d}" for d in family.nearest(depth))
        form = "6n + 2 or 9n + 2" if prefix == "cifar_preact_resnet" else "6n + 2"
        raise UserError(f"no {name!r}: the depth must be {form}; the nearest are {near}")
    return spec
