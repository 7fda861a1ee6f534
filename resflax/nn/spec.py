"""An architecture as data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from operator import mul
from typing import Any

from resflax.errors import UserError
from resflax.nn.blocks import Block, ConvRow
from resflax.nn.checks import to_tuples
from resflax.nn.drop import RATES
from resflax.nn.ensembles import ENSEMBLE_FIELDS, EnsembleRow
from resflax.nn.field_table import FIELDS
from resflax.nn.fields import canonical, canonical_block, is_shipped, resolve
from resflax.nn.functions import describe
from resflax.nn.gates import Gate
from resflax.nn.layers import per_axis
from resflax.nn.orders import ORDERS, Order
from resflax.nn.spec_checks import check_parts, check_values
from resflax.nn.spec_json import describe_saved, from_json, is_missing, to_json
from resflax.nn.stages import FeatureInfo, Pruned, Stages, make_stages, prune, repeat_channels

# The name of a part, its row, or a function: see `resflax.nn.fields`.
Part = Any


@dataclass(frozen=True)
class Spec:
    """Architecture of a residual network, or of its plain counterpart, run by `ResNet`.

    Attributes:
      depths: number of blocks in each stage. Each stage but the first halves the image.
      widths: channels of each stage's blocks before expansion.
      block: branch of the blocks, a name in `BLOCKS`: "basic", "bottleneck" (v1.5),
        "bottleneck_v1", "bottleneck_senet", "basic_spatial" or "basic_2plus1d"; or a tuple with one
        per stage. As all fields that choose a part by name, it also takes the part itself: a row of
        the table (here a tuple of `ConvRow`), or a function (see `resflax.nn.fields` and
        docs/composition.md).
      stem: a name in `STEMS`: "imagenet", "deep", "tiered", "rs", "bit", "cifar", "cifar_stride2",
        "video" or "video_2plus1d".
      stem_width: channels after the stem.
      shortcut: a name in `SHORTCUTS`: the paper's "A", "B" or "C", "B3" (3x3), "D" (pooled), or
        "none" for the plain network.
      gate: how blocks combine shortcut and branch, a name in `GATES`: "none" for the sum, or
        "rezero", "skipinit", "layer_scale" and others.
      preact: pre-activation (v2, 2016) instead of post-activation (v1, 2015).
      order: where norms and activations are, a name in `ORDERS`: "original" (v1), "norm_after_add",
        "act_before_add", "act_only_preact" or "preact" (v2). "auto" follows `preact`, and is what
        "original" and "preact" are stored as.
      groups: groups of the bottlenecks' 3x3 convolutions (ResNeXt's cardinality).
      base_width: inner channels per group of a block whose width is 64 (ResNeXt, wide ResNets). A
        block has `width * base_width // 64 * groups` inner channels.
      attention: a name in `ATTENTION`: "none", "se", "se_rs" or "eca".
      antialias: a name in `ANTIALIAS`: "none", "blur" or "average".
      norm: a name in `NORMS`: "batch", "group", "evonorm_s0", "frn_tlu" or "none".
      norm_momentum: decay of the running averages of batch norms, 1 minus that of PyTorch.
      norm_epsilon: what batch norms add to variances.
      conv: a name in `CONVS`: "plain", "standardized" or "scaled_standardized"
        (with gains and biases).
      activation: a name in `ACTIVATIONS`, such as "relu", "gelu" or "silu".
      pooling: a name in `POOLINGS`: "avg", "max", "avgmax" (their mean) or "catavgmax" (both, for a
        head of twice the inputs), over all pixels before the head.
      head: a name in `HEADS`: "linear".
      output_stride: largest stride of a feature map: 32, 16 or 8. Strides beyond it are replaced by
        dilation.
      pruned: channels of each convolution of each block of each stage, overriding those that follow
        from the widths. None if the network is not pruned.
      zero_init: initialize the last norm's scale of every branch (with `preact`, its last kernel)
        to zero, so that each block starts as its shortcut; as in timm and Flax's example, unlike
        the paper. Ignored without shortcuts.
      drop_path: probability with which training drops the last block's branch, drawn per example.
        It rises linearly from 0 at the first block (stochastic depth).
      drop_block: share of the feature maps that training drops in square regions (DropBlock),
        between the norm and the activation before the last convolution of each branch of the last
        two stages; timm's `drop_block_rate`, with its sizes of the regions and factors of the rate.
      dropout: probability with which training drops a feature before the head.
      num_classes: outputs of the head, per member. 0 for pooled features.
      dimensions: number of spatial axes: 1 for signals `(n, length, channels)`, 2 for images
        `(n, height, width, channels)`, 3 for volumes or clips `(n, depth, height, width,
        channels)`. A row's "3x3" then has 3 or 3x3x3 weights per pair of channels.
      ensemble: a name in `ENSEMBLES`: "none", or an efficient ensemble in one network: "batch"
        (rank-1 factors), "packed" (grouped convolutions) or "mimo" (several inputs and heads).
      members: number of members of the ensemble.
      alpha: with "packed", factor of all numbers of channels, which the members share: each is a
        network of `alpha / members` times the widths.
      batch_repetition: with "mimo", how often training uses each example of a batch.
      input_repetition: with "mimo", share of the training inputs that are the same image for all
        members.

    Raises:
      UserError: on an unknown name or an invalid value or combination.

    >>> spec = Spec(depths=(2, 2), widths=(8, 16), block="basic", stem="cifar", stem_width=8)
    >>> spec.stages[1][0].geometry, spec.min_image_size
    (BlockGeometry(stride=2, in_dilation=1, dilation=1), 2)
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: Part = "bottleneck"
    stem: Part = "imagenet"
    stem_width: int = 64
    shortcut: Part = "B"
    gate: Part = "none"
    preact: bool = False
    order: Part = "auto"
    groups: int = 1
    base_width: int = 64
    attention: Part = "none"
    antialias: Part = "none"
    norm: Part = "batch"
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    conv: Part = "plain"
    activation: Part = "relu"
    pooling: Part = "avg"
    head: Part = "linear"
    output_stride: int = 32
    pruned: Pruned | None = None
    zero_init: bool = True
    drop_path: float = 0.0
    drop_block: float = 0.0
    dropout: float = 0.0
    num_classes: int = 1000
    dimensions: int = 2
    ensemble: Part = "none"
    members: int = 1
    alpha: float = 1.0
    batch_repetition: int = 1
    input_repetition: float = 0.0

    def __post_init__(self) -> None:
        self._store_canonical_values()
        check_values(self)
        self._resolve_order()
        check_parts(self)

    @property
    def parts(self) -> tuple[Any, ...]:
        """What the names of the fields stand for now, one part per stage and field.

        A cache by the spec needs them as well: the tables are open, and an equal spec has other
        parts after a row has been replaced.
        """
        others = (resolve(field, getattr(self, field)) for field in FIELDS if field != "block")
        return (*self.blocks, self.order_row, *others)

    @property
    def stages(self) -> Stages:
        """Blocks of each stage, with channels, strides and dilations resolved."""
        return _stages(self, self.parts)

    def _make_stages(self) -> Stages:
        if self.channel_groups > 1:
            return repeat_channels(self.member.stages, self.members)
        stages = make_stages(
            self.depths,
            self.widths,
            self.blocks,
            groups=self.groups,
            base_width=self.base_width,
            stem_width=self.stem_width,
            stem_stride=max(resolve("stem", self.stem).strides(self.dimensions)),
            output_stride=self.output_stride,
        )
        return stages if self.pruned is None else prune(stages, self.pruned)

    @property
    def order_row(self) -> Order:
        """The row of `ORDERS`."""
        name = "preact" if self.preact else "original"
        row: Order = resolve("order", self.order) or ORDERS[name]
        return row

    @property
    def block_values(self) -> tuple[Any, ...]:
        """Value of `block` of each stage: a name, a row or a function."""
        per_stage = isinstance(self.block, tuple) and not isinstance(self.block[0], ConvRow)
        return tuple(self.block) if per_stage else (self.block,) * len(self.depths)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Branch of each stage's blocks: rows of convolutions, or a function."""
        return tuple(resolve("block", block) for block in self.block_values)

    @property
    def own_parts(self) -> dict[str, Any]:
        """Fields with a function or a row that the library does not ship, and these.

        A name is among them if its row was added to the field's table, or replaced. Blocks of
        convolutions are not, since their rows are data.
        """
        values = {field: getattr(self, field) for field in FIELDS if field != "block"}
        if self.order == "auto":
            values["order"] = "preact" if self.preact else "original"
        own = {field: value for field, value in values.items() if not is_shipped(field, value)}
        blocks = zip(self.block_values, self.blocks, strict=True)
        own["block"] = next((value for value, block in blocks if callable(block)), None)
        tables = {field: FIELDS[field].table for field in own}
        return {
            field: tables[field][part] if isinstance(part, str) else part
            for field, part in own.items()
            if part is not None
        }

    @property
    def min_image_size(self) -> int:
        """Smallest image side, in pixels, for which no stride is applied to a single pixel."""
        return max(self.min_sizes)

    @property
    def min_sizes(self) -> tuple[int, ...]:
        """Smallest size along each axis for which no stride is applied to a single element."""
        strides = per_axis(self.features[-1].stride, self.dimensions)
        return tuple(stride // 2 + 1 for stride in strides)

    @property
    def ensemble_row(self) -> EnsembleRow:
        """Row of `ENSEMBLES`."""
        row: EnsembleRow = resolve("ensemble", self.ensemble)
        return row

    @property
    def channel_groups(self) -> int:
        """Number of groups of channels that belong to different members."""
        return self.members if self.ensemble_row.channels else 1

    @property
    def stem_channels(self) -> int:
        """Channels after the stem, of all members that have separate channels."""
        return self.member.stem_width * self.channel_groups

    @property
    def member(self) -> "Spec":
        """The single network that each member of the ensemble is, with the same outputs."""
        if self.ensemble == "none":
            return self
        defaults: dict[str, Any] = {"ensemble": "none", **ENSEMBLE_FIELDS}
        if self.ensemble_row.channels:
            defaults["stem_width"] = self._member_channels("stem_width", self.stem_width)
            defaults["widths"] = tuple(self._member_channels("widths", w) for w in self.widths)
        return replace(self, **defaults)

    @property
    def needs_rng(self) -> bool:
        """Whether training draws random numbers in the network."""
        shuffles = self.ensemble_row.shuffles and self.members > 1
        shuffles = shuffles and self.input_repetition < 1
        drops = any(getattr(self, name) for name in RATES)
        return drops or self._gate.is_random or shuffles

    def without_rng(self) -> "Spec":
        """Returns the spec whose training draws no random numbers, as evaluation does not."""
        same = 1.0 if self.ensemble_row.shuffles else 0.0
        gate = "none" if self._gate.is_random else self.gate
        rates: dict[str, Any] = dict.fromkeys(RATES, 0.0)
        return replace(self, **rates, input_repetition=same, gate=gate)

    @property
    def _gate(self) -> Gate:
        row: Gate = resolve("gate", self.gate)
        return row

    @property
    def features(self) -> tuple[FeatureInfo, ...]:
        """Feature maps of the stem (before its pooling) and of every stage."""
        stem, rows = resolve("stem", self.stem), self.members if self.ensemble_row.rows else 1
        channels, dimensions = self.stem_channels * rows, self.dimensions
        maps = [("stem", channels, stem.conv_strides(dimensions))]
        if 0 in maps[0][2]:
            raise UserError(
                f"stem {describe(self.stem)} returns larger maps than its images: expected a stride"
                " of 1 or more for feature maps"
            )
        strides = stem.strides(dimensions)
        for i, blocks in enumerate(self.stages, start=1):
            strides = tuple(map(mul, strides, blocks[0].strides(dimensions)))
            maps.append((f"stage{i}", blocks[-1].channels[-1] * rows, strides))
        return tuple(
            FeatureInfo(name, channels, strides if len({*strides}) > 1 else strides[0])
            for name, channels, strides in maps
        )

    def override(self, **overrides: Any) -> "Spec":
        """Returns a copy with some fields replaced.

        Raises:
          UserError: on an unknown field or an invalid value.
        """
        known = [f.name for f in fields(self)]
        for name in overrides:
            if name not in known:
                raise UserError(f"unknown field {name!r} of a spec: expected {', '.join(known)}")
        return replace(self, **overrides)

    def to_json_dict(self) -> dict[str, Any]:
        """Returns all fields as JSON values, with functions as "module:name"."""
        return {f.name: to_json(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json_dict(
        cls,
        values: Mapping[str, Any],
        *,
        import_functions: bool = False,
        replacement: "Spec | None" = None,
    ) -> "Spec":
        """Returns the spec from the values of `to_json_dict`.

        Args:
          values: the values of all fields.
          import_functions: import functions, which runs code that the values name. One that is not
            imported, or cannot be, is an error where the network calls it.
          replacement: spec whose fields replace those with such functions, and with unknown names.

        Raises:
          UserError: if a value is invalid.
          TypeError: if a field is missing or unknown.
        """
        decode = partial(from_json, import_functions=import_functions)
        decoded = {name: decode(value) for name, value in values.items()}
        if replacement:
            unknown = (name for name, value in decoded.items() if not _is_known(name, value))
            decoded |= {name: getattr(replacement, name) for name in unknown}
        return cls(**decoded)

    def describe_saved(self) -> list[str]:
        """Returns lines that say how the functions of the spec are saved, if it has any."""
        own = {field: getattr(self, field) for field in self.own_parts}
        return describe_saved(own)

    def _store_canonical_values(self) -> None:
        for field in FIELDS:
            fix = canonical_block if field == "block" else partial(canonical, field)
            object.__setattr__(self, field, fix(getattr(self, field)))
        # Config files have lists; tuples keep the spec hashable.
        for field in ("depths", "widths", "pruned"):
            object.__setattr__(self, field, to_tuples(getattr(self, field)))

    def _resolve_order(self) -> None:
        """Stores one of two names for the same network."""
        if self.order == "preact":
            object.__setattr__(self, "preact", True)
        elif self.order != "auto" and self.preact:
            raise UserError(
                f"preact is True, but order is {self.order!r}: use preact=False with it"
            )
        if self.order in ("original", "preact"):
            object.__setattr__(self, "order", "auto")

    def _member_channels(self, field: str, width: int) -> int:
        """Returns a member's share of a width of a packed ensemble."""
        channels = width * self.alpha / self.members
        if channels != int(channels) or channels < 1:
            raise UserError(
                f"{field} has {width}, times alpha {self.alpha:g} that is {width * self.alpha:g}:"
                f" expected a multiple of members, {self.members}"
            )
        return int(channels)


def _is_known(field: str, value: Any) -> bool:
    """Returns whether a value from JSON has all its functions, and names that are in the tables."""
    if field not in FIELDS:
        return True
    names = value if field == "block" and isinstance(value, tuple) else (value,)
    table = FIELDS[field].table
    return not is_missing(value) and all(n in table for n in names if isinstance(n, str))


@lru_cache(maxsize=256)
def _stages(spec: Spec, parts: tuple[Any, ...]) -> Stages:
    del parts  # of the key only
    return spec._make_stages()
