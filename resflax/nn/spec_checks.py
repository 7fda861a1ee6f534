"""Checks of the values of a `Spec`, before a network is made of it."""

from dataclasses import replace
from math import inf, prod
from typing import Any

from resflax.errors import UserError
from resflax.nn.checks import check_integer, nested_lengths
from resflax.nn.convs import PLAIN
from resflax.nn.drop import RATES
from resflax.nn.drop_block import stage_drop_blocks
from resflax.nn.ensembles import ENSEMBLE_FIELDS, check_ensemble_fields
from resflax.nn.field_table import FIELDS, SHIPPED
from resflax.nn.fields import is_shipped, resolve
from resflax.nn.functions import describe
from resflax.nn.gates import SUM
from resflax.nn.layers import per_axis
from resflax.nn.norms import NormRow
from resflax.nn.orders import STEPS
from resflax.nn.row_checks import check_row_values

Spec = Any  # `resflax.nn.spec.Spec`, which imports this module
OUTPUT_STRIDES = (8, 16, 32)
# Far above any network in use, so that a typing error does not exhaust the machine's memory.
MAX_BLOCKS, MAX_CHANNELS, MAX_CLASSES = 10_000, 65_536, 10_000_000
MAX_INNER_CHANNELS = 2**31 - 1


def check_values(spec: Spec) -> None:
    """Checks each number and truth value.

    Raises:
      UserError: if one is invalid.
    """
    _check_numbers(spec)
    _check_rates(spec)
    if len(spec.depths) != len(spec.widths):
        raise UserError(
            f"depths {spec.depths} and widths {spec.widths} differ in length:"
            " expected one of each per stage"
        )


def check_parts(spec: Spec) -> None:
    """Checks that the parts of the network fit each other.

    Raises:
      UserError: if they do not.
    """
    for check in (
        _check_rows,
        _check_order,
        _check_blocks,
        _check_dimensions,
        _check_strides,
        _check_drop_block,
        _check_ensemble,
        # The following need the stages.
        _check_pruned,
        _check_dilation,
        _check_gate,
        _check_channels,
    ):
        check(spec)


def _check_numbers(spec: Spec) -> None:
    for field in ("preact", "zero_init"):
        if not isinstance(getattr(spec, field), bool):
            raise UserError(f"{field} is {getattr(spec, field)!r}: expected True or False")
    for field, maximum in (("norm_momentum", 1.0), ("norm_epsilon", inf)):
        value = getattr(spec, field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < maximum:
            raise UserError(f"{field} is {value!r}: expected 0 or more, and less than {maximum}")
    for field, maximum in (("depths", MAX_BLOCKS), ("widths", MAX_CHANNELS)):
        value = getattr(spec, field)
        if not isinstance(value, list | tuple) or not value:
            raise UserError(f"{field} is {value!r}: expected a tuple of integers")
        for i, number in enumerate(value):
            check_integer(f"{field}[{i}]", number, 1, maximum)
    for field, minimum, maximum in (
        ("stem_width", 1, MAX_CHANNELS),
        ("num_classes", 0, MAX_CLASSES),
        ("dimensions", 1, 3),
        ("groups", 1, MAX_CHANNELS),
        ("base_width", 1, MAX_CHANNELS),
    ):
        check_integer(field, getattr(spec, field), minimum, maximum)
    if spec.output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride is {spec.output_stride!r}: expected 8, 16 or 32")


def _check_rates(spec: Spec) -> None:
    for field in RATES:
        value = getattr(spec, field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < 1:
            raise UserError(f"{field} is {value!r}: expected a probability below 1")
    if spec.drop_path and resolve("shortcut", spec.shortcut).make is None:
        raise UserError(
            f"drop_path is {spec.drop_path}: a network without shortcuts needs every branch,"
            " use drop_path=0"
        )


def _check_drop_block(spec: Spec) -> None:
    """Checks that the branches that drop regions have a place for it."""
    blocks = zip(spec.block_values, spec.blocks, stage_drop_blocks(len(spec.depths)), strict=True)
    for value, block, drop in blocks if spec.drop_block else ():
        if drop and (callable(block) or len(block) < 2):
            raise UserError(
                f"drop_block is {spec.drop_block}, which drops before the last convolution of a"
                f" branch, and block {describe(value)} has no place for it: use drop_block=0 or two"
                " or more rows of convolutions"
            )


def _check_rows(spec: Spec) -> None:
    """Checks the values of the rows that the library does not ship."""
    fields = [field for field in FIELDS if field != "block"]
    own = [field for field in fields if not is_shipped(field, getattr(spec, field))]
    rows = [(field, resolve(field, getattr(spec, field))) for field in own]
    for field, row in (*rows, *(("block", block) for block in spec.blocks)):
        check_row_values(field, row, spec.dimensions)


def _check_blocks(spec: Spec) -> None:
    if len(spec.block_values) != len(spec.depths):
        raise UserError(
            f"block has {len(spec.block_values)} values for {len(spec.depths)} stages: expected"
            " one, or one per stage"
        )
    for value, block in zip(spec.block_values, spec.blocks, strict=True):
        if spec.groups > 1 and (callable(block) or not any(row.grouped for row in block)):
            raise UserError(
                f"groups is {spec.groups}, but block {describe(value)} has no grouped"
                " convolution: use groups=1 or a bottleneck"
            )


def _check_strides(spec: Spec) -> None:
    """Checks that each branch has the stride of its block's shortcut: once along some axis."""
    for i, (value, block) in enumerate(zip(spec.block_values, spec.blocks, strict=True)):
        if callable(block):
            continue
        strides = [per_axis(row.strides(2), spec.dimensions) for row in block]
        products = [prod(axis) for axis in zip(*strides, strict=True)]
        # The first stage has no stride.
        if max(products) > 2 or (i > 0 and max(products) < 2):
            raise UserError(
                f"block {describe(value)} strides by {tuple(products)}, and its stage by 2:"
                " expected one ConvRow with strided=True"
            )


def _check_order(spec: Spec) -> None:
    for field, steps in spec.order_row._asdict().items():
        if steps not in STEPS:
            raise UserError(
                f"order has {field}={steps!r}: expected one of {', '.join(map(str, STEPS))}"
            )


def _check_pruned(spec: Spec) -> None:
    if spec.pruned is None:
        return
    full = [[len(b.channels) for b in stage] for stage in replace(spec, pruned=None).stages]
    if nested_lengths(spec.pruned) != full:
        raise UserError(
            "pruned does not match depths and block: expected the number of channels of"
            " every convolution of every block"
        )


def _check_dilation(spec: Spec) -> None:
    for value, stage in zip(spec.block_values, spec.stages, strict=True):
        if stage[0].function and stage[-1].geometry.dilation > 1:
            raise UserError(
                f"output_stride is {spec.output_stride}, but block {describe(value)}, a"
                " function, has no dilation: use output_stride=32 or rows of convolutions"
            )


def _check_gate(spec: Spec) -> None:
    if resolve("gate", spec.gate) is SUM:
        return
    if resolve("shortcut", spec.shortcut).make is None:
        raise UserError(
            f"gate is {describe(spec.gate)}, but shortcut is 'none': use gate='none' or another"
            " shortcut"
        )
    if spec.ensemble_row.rows or spec.ensemble_row.channels:
        raise UserError(
            f"gate is {describe(spec.gate)}, but the members of ensemble"
            f" {describe(spec.ensemble)} are one network, whose gates would mix them: use"
            " gate='none'"
        )


def _check_dimensions(spec: Spec) -> None:
    """Checks that kernels with one size per axis have as many as there are axes."""
    rows: list[tuple[str, Any]] = [
        (f"block {describe(value)}", () if callable(block) else block)
        for value, block in zip(spec.block_values, spec.blocks, strict=True)
    ]
    rows.append((f"stem {describe(spec.stem)}", resolve("stem", spec.stem).convs))
    for name, convs in rows:
        kernels = [conv.kernel for conv in convs if not isinstance(conv.kernel, int)]
        for size in {len(kernel) for kernel in kernels} - {spec.dimensions}:
            raise UserError(
                f"{name} has kernels of {size} dimensions, but dimensions is {spec.dimensions}:"
                f" use dimensions={size} or another {name.split()[0]}"
            )
        if kernels and spec.antialias != "none":
            raise UserError(
                f"antialias {describe(spec.antialias)} pools all axes alike, and {name} has"
                f" kernels such as {kernels[0]}: use antialias='none'"
            )


def _check_ensemble(spec: Spec) -> None:
    conv, ensemble = resolve("conv", spec.conv), spec.ensemble_row
    if (conv.epsilon is not None or conv.function is not PLAIN.function) and (
        ensemble.rows or ensemble.shuffles
    ):
        raise UserError(
            f"conv is {describe(spec.conv)}, but the members of ensemble"
            f" {describe(spec.ensemble)} share kernels, which it would change together: use"
            " conv='plain' or ensemble='none'"
        )
    check_ensemble_fields(
        describe(spec.ensemble),
        spec.ensemble_row,
        {name: getattr(spec, name) for name in ENSEMBLE_FIELDS},
    )
    if spec.channel_groups > 1:
        norm: NormRow = resolve("norm", spec.norm)
        if spec.attention != "none" or norm.channel_multiple > 1:
            raise UserError(
                f"ensemble 'packed' with attention {describe(spec.attention)} and norm"
                f" {describe(spec.norm)}: expected attention='none', and norm='batch' or"
                " 'frn_tlu', which keep members apart"
            )
        if spec.pruned is not None:
            raise UserError("ensemble 'packed' cannot be pruned: use pruned=None")
    own = spec.own_parts
    if not resolve("stem", spec.stem).function:
        own.pop("stem", None)  # rows of convolutions are data
    for field in ensemble.shipped:
        if field in own:
            raise UserError(
                f"{field} is {describe(own[field])}, and ensemble {describe(spec.ensemble)} needs a"
                f" shipped one, which keeps its members apart: expected one of"
                f" {', '.join(SHIPPED[field])}"
            )


def _check_channels(spec: Spec) -> None:
    multiple = max(resolve("norm", spec.norm).channel_multiple, spec.channel_groups)
    convs = resolve("stem", spec.stem).convs
    stem = [int(spec.stem_channels * conv.width_fraction) for conv in convs]
    for channels in {*stem}.union(*(b.channels for stage in spec.stages for b in stage)):
        check_integer("number of channels of a convolution", channels, 1, MAX_INNER_CHANNELS)
        if channels % multiple:
            packed = spec.channel_groups > 1
            part = "ensemble 'packed'" if packed else f"norm {describe(spec.norm)}"
            raise UserError(
                f"{part} needs numbers of channels divisible by {multiple}: got {channels}"
            )
