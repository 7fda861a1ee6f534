"""Networks for small images: He et al. 2015 (section 4.2) and 2016, of any valid depth.

A name is a prefix and a depth. Three stages of n blocks and two more layers give the depth `6n + 2`
for basic blocks (two layers each) and `9n + 2` for bottlenecks (three). Wide ResNets count the two
projections as layers, `6n + 4`, and have the factor of their widths in the name.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from resflax.errors import UserError
from resflax.nn import BLOCKS, Spec


def _cifar_spec(block: str, n: int, **fields: object) -> Spec:
    base = Spec((n, n, n), (16, 32, 64), block, "cifar", 16, shortcut="A", num_classes=10)
    return base.override(**fields)


def _preact_block(depth: int) -> str:
    # 20, 110 and 164 fit both blocks. The 2016 paper's 110 is basic, its 164 and 1001 bottlenecks.
    fits_basic, fits_bottleneck = (depth - 2) % 6 == 0, (depth - 2) % 9 == 0
    return "bottleneck_v1" if fits_bottleneck and (depth >= 164 or not fits_basic) else "basic"


class Family(NamedTuple):
    """Row of `FAMILIES`.

    Attributes:
      depths: depths that `list_models` lists.
      block: maps a depth to the name of its block.
      fields: maps the name of a block to further fields of the spec.
    """

    depths: tuple[int, ...]
    block: Callable[[int], str]
    fields: Callable[[str], dict[str, object]]

    def spec(self, depth: int) -> Spec | None:
        """Returns the spec with that depth, or None if no number of blocks gives it."""
        block = self.block(depth)
        n, remainder = divmod(depth - 2, 3 * len(BLOCKS[block]))
        return None if remainder or n < 1 else _cifar_spec(block, n, **self.fields(block))

    def nearest_depths(self, depth: int) -> list[int]:
        """Returns the closest valid depths below and above `depth`."""
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
        # The 2016 paper's bottlenecks project where shapes differ; its basic blocks use option A.
        lambda block: {"preact": True, "shortcut": "A" if block == "basic" else "B"},
    ),
}


def wide_resnet_spec(depth: int, factor: int) -> Spec:
    """Returns WRN-depth-factor (Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1).

    Raises:
      UserError: if the depth is not of the form 6n + 4.
    """
    n, remainder = divmod(depth - 4, 6)
    if remainder or n < 1:
        below = max(depth - 4, 6) // 6 * 6 + 4
        nearest = " and ".join(f"wrn{d}_{factor}" for d in (below, below + 6))
        raise UserError(
            f"unknown model 'wrn{depth}_{factor}': the depth must be 6n + 4, such as {nearest}"
        )
    widths = tuple(factor * width for width in (16, 32, 64))
    return _cifar_spec("basic", n, widths=widths, preact=True, shortcut="B")


def _resnext29_spec(groups: int, base_width: int) -> Spec:
    """Returns ResNeXt-29 (Xie et al. 2016, arXiv:1611.05431, section 5.3)."""
    return Spec((3, 3, 3), (64, 128, 256), stem="cifar", groups=groups, base_width=base_width,
                num_classes=10)  # fmt: skip


WIDE_RESNETS = ((16, 4), (16, 8), (28, 10), (40, 2), (40, 4))
RESNEXT29 = ((8, 64), (16, 64))

SPECS: dict[str, Spec] = {
    **{
        f"{prefix}{depth}": spec
        for prefix, family in FAMILIES.items()
        for depth in family.depths
        if (spec := family.spec(depth))
    },
    **{f"wrn{depth}_{factor}": wide_resnet_spec(depth, factor) for depth, factor in WIDE_RESNETS},
    **{f"cifar_resnext29_{g}x{width}d": _resnext29_spec(g, width) for g, width in RESNEXT29},
}


def parse_name(name: str) -> Spec | None:
    """Returns the spec for a prefix of these families and any valid depth; None for other names.

    Raises:
      UserError: if the prefix is known but the depth is not valid.

    >>> parse_name("cifar_resnet26").depths
    (4, 4, 4)
    """
    if match := re.fullmatch(r"wrn([1-9][0-9]{0,5})_([1-9][0-9]{0,3})", name):
        return wide_resnet_spec(int(match[1]), int(match[2]))
    match = re.fullmatch(r"(\D+)([1-9][0-9]{0,5})", name)
    if not match or match[1] not in FAMILIES:
        return None
    prefix, depth = match[1], int(match[2])
    family = FAMILIES[prefix]
    spec = family.spec(depth)
    if spec is None:
        nearest = " and ".join(f"{prefix}{d}" for d in family.nearest_depths(depth))
        form = "6n + 2 or 9n + 2" if prefix == "cifar_preact_resnet" else "6n + 2"
        raise UserError(f"unknown model {name!r}: the depth must be {form}, such as {nearest}")
    return spec
