"""An architecture as data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from resflax.errors import UserError, unknown
from resflax.nn.antialias import ANTIALIAS
from resflax.nn.attention import ATTENTION
from resflax.nn.blocks import BLOCKS
from resflax.nn.layers import CONVS
from resflax.nn.norms import NORMS
from resflax.nn.plan import FeatureInfo, plan
from resflax.nn.shortcuts import SHORTCUTS
from resflax.nn.stems import STEMS

CHOICES: dict[str, Mapping[str, Any]] = {
    "stem": STEMS,
    "shortcut": SHORTCUTS,
    "attention": ATTENTION,
    "antialias": ANTIALIAS,
    "norm": NORMS,
    "conv": CONVS,
}
OUTPUT_STRIDES = (8, 16, 32)
Pruned = tuple[tuple[tuple[int, ...], ...], ...]

# Far above what anybody trains; a slip of the hand should not take the machine down.
MAX_BLOCKS, MAX_CHANNELS, MAX_CLASSES = 10_000, 65_536, 10_000_000
MAX_INNER = 2**31 - 1


def _check_count(field: str, value: object, minimum: int, maximum: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not minimum <= value <= maximum:  # type: ignore[operator]
        raise UserError(f"{field} holds {value!r}: expected integers from {minimum} to {maximum}")


def _check_name(field: str, value: object, table: Mapping[str, Any]) -> None:
    if not isinstance(value, str) or value not in table:
        raise unknown(field, value, table)


def _lengths(pruned: Any) -> Any:
    """The number of numbers in each block of each stage; None if it is not made so."""
    try:
        return [[len(channels) for channels in stage] for stage in pruned]
    except TypeError:
        return None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Spec:
    """A residual network, or its plain twin, as data that one engine (`ResNet`) runs.

    Attributes:
      depths: blocks in each stage; each stage but the first halves the image.
      widths: channels of each stage's blocks before expansion.
      block: the branch, a name in `BLOCKS`: "basic", "bottleneck" (v1.5), "bottleneck_v1",
        "bottleneck_senet"; or a tuple of them, one for each stage.
      stem: a name in `STEMS`: "imagenet", "deep", "tiered", "rs", "bit" or "cifar".
      stem_width: channels after the stem.
      shortcut: a name in `SHORTCUTS`: "A", "B", "C" of the paper, "B3" (3x3), "D" (pooled), or "none"
        for the plain net.
      preact: pre-activation (v2, 2016) instead of post-activation (v1, 2015).
      groups: of the 3x3 convolutions of bottlenecks (ResNeXt's cardinality).
      base_width: inner channels of a block for each group, where its width is 64 (ResNeXt, wide
        ResNets): `width * base_width // 64 * groups` in all.
      attention: a name in `ATTENTION`: "none", "se", "se_rs" or "eca".
      antialias: a name in `ANTIALIAS`: "none", "blur" or "average".
      norm: a name in `NORMS`: "batch", "group", "evonorm_s0" or "frn_tlu".
      conv: a name in `CONVS`: "plain" or "standardized".
      output_stride: 32, or 16 or 8: the most by which the image shrinks. What strides would shrink
        it further, the kernels behind are dilated instead.
      pruned: the channels of each convolution of each block of each stage, in place of those that
        follow from the widths; None for all of them.
      zero_init: start every branch at zero, by its last norm's scale (by its last kernel if
        `preact`), so that a block begins as its shortcut; as timm and Flax's example do, and not
        the paper. A plain net has no shortcut to begin as: it begins as ever.
      drop_path: the probability with which training leaves out the last block's branch, for each
        example anew; it rises to that from 0 for the first block (stochastic depth).
      dropout: the probability with which training leaves out a feature before the head.
      num_classes: outputs of the head; 0 for pooled features.

    Raises:
      UserError: on a name that is not known or a combination that cannot be.

    >>> Spec(depths=(2, 2), widths=(8, 16), stem="cifar", stem_width=8, block="basic").min_image_size
    2
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: str | tuple[str, ...] = "bottleneck"
    stem: str = "imagenet"
    stem_width: int = 64
    shortcut: str = "B"
    preact: bool = False
    groups: int = 1
    base_width: int = 64
    attention: str = "none"
    antialias: str = "none"
    norm: str = "batch"
    conv: str = "plain"
    output_stride: int = 32
    pruned: Pruned | None = None
    zero_init: bool = True
    drop_path: float = 0.0
    dropout: float = 0.0
    num_classes: int = 1000

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_rates()
        # Lists come from config files; tuples keep the spec hashable.
        for field in ("depths", "widths", "block", "pruned"):
            object.__setattr__(self, field, _tuples(getattr(self, field)))
        if len(self.depths) != len(self.widths):
            raise UserError(f"depths {self.depths} and widths {self.widths} differ in length")
        self._check_blocks()
        self._check_channels()

    def _check_fields(self) -> None:
        for field, table in CHOICES.items():
            _check_name(field, getattr(self, field), table)
        for field in ("preact", "zero_init"):
            if not isinstance(getattr(self, field), bool):
                raise UserError(f"{field} is {getattr(self, field)!r}: expected True or False")
        for field, maximum in (("depths", MAX_BLOCKS), ("widths", MAX_CHANNELS)):
            value = getattr(self, field)
            if not isinstance(value, list | tuple) or not value:
                raise UserError(f"{field} is {value!r}: expected a tuple of integers")
            for number in value:
                _check_count(field, number, 1, maximum)
        for field, minimum, maximum in (
            ("stem_width", 1, MAX_CHANNELS),
            ("num_classes", 0, MAX_CLASSES),
            ("groups", 1, MAX_CHANNELS),
            ("base_width", 1, MAX_CHANNELS),
        ):
            _check_count(field, getattr(self, field), minimum, maximum)
        if self.output_stride not in OUTPUT_STRIDES:
            raise UserError(f"output_stride is {self.output_stride!r}: expected 8, 16 or 32")

    def _check_rates(self) -> None:
        for field in ("drop_path", "dropout"):
            value = getattr(self, field)
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if not real or not 0 <= value < 1:
                raise UserError(f"{field} is {value!r}: expected a probability of less than 1")
        if self.drop_path and SHORTCUTS[self.shortcut].make is None:
            raise UserError(f"drop_path is {self.drop_path}: a plain net needs every branch, use 0")

    def _check_blocks(self) -> None:
        if not isinstance(self.block, str | tuple) or len(self.blocks) != len(self.depths):
            raise UserError(f"block {self.block!r} must be one name, or one for each of the stages")
        for name in self.blocks:
            _check_name("block", name, BLOCKS)
            if self.groups > 1 and not any(layer.grouped for layer in BLOCKS[name]):
                raise UserError(f"groups is {self.groups}, but block {name!r} has no grouped layer")

    def _check_channels(self) -> None:
        if self.pruned is not None:
            whole = [[len(b.channels) for b in stage] for stage in plan(replace(self, pruned=None))]
            if _lengths(self.pruned) != whole:
                raise UserError("pruned must hold a number for each convolution of each block")
        of = NORMS[self.norm].groups
        stem = [int(self.stem_width * conv.share) for conv in STEMS[self.stem].convs]
        for channels in {*stem}.union(*(b.channels for stage in plan(self) for b in stage)):
            _check_count("channels", channels, 1, MAX_INNER)
            if channels % of:
                raise UserError(f"norm {self.norm!r} takes multiples of {of} channels: {channels}")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The branch of each stage."""
        return (self.block,) * len(self.depths) if isinstance(self.block, str) else self.block

    @property
    def min_image_size(self) -> int:
        """The smallest image side, in pixels, on which no stride acts on a single pixel."""
        strided = sum(stage[0].scale.stride == 2 for stage in plan(self))
        return 2 ** (STEMS[self.stem].halvings + strided) // 2 + 1

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        """What the stem (before its pooling) and every stage give."""
        stem = STEMS[self.stem]
        stride = 2 ** sum(conv.stride == 2 for conv in stem.convs)
        features = [FeatureInfo("stem", self.stem_width, stride)]
        stride *= 2 if stem.pool else 1
        for i, stage in enumerate(plan(self), start=1):
            stride *= stage[0].scale.stride
            features.append(FeatureInfo(f"stage{i}", stage[-1].channels[-1], stride))
        return tuple(features)

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
