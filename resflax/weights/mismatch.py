"""What a state dict lacks, and has too much, for a network; and which network it fits."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from resflax.errors import UserError
from resflax.nn import Spec
from resflax.nn.drop import RATES
from resflax.weights.array_specs import array_specs
from resflax.weights.layouts import LAYOUTS, block_name
from resflax.weights.shapes import variable_shapes
from resflax.zoo.cifar import parse_name
from resflax.zoo.registry import SPECS, get_spec

MAX_NAMES = 3
# Share of a network's arrays from which on it is the one that the given arrays are of.
MIN_SHARE = 0.5
# Output channels of each convolution of each block of each stage.
Channels = tuple[tuple[tuple[int, ...], ...], ...]


def describe_mismatch(
    required: Mapping[str, Any], optional: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> str:
    """Returns the first missing and unexpected names and wrong shapes, with counts; "" if none.

    Args:
      required: shapes of the arrays of a network, by name.
      optional: shapes of further arrays that it may have.
      arrays: the given arrays.

    >>> describe_mismatch({"a": (1,), "b": (2,)}, {}, {"b": np.ones(3), "c": np.ones(1)})
    '1 of 2 missing: a; 1 unexpected: c; 1 of another shape: b has shape (3,), expected (2,)'
    """
    shapes = {**required, **optional}
    missing = [key for key in required if key not in arrays]
    unexpected = [key for key in arrays if key not in shapes]
    wrong = [
        f"{key} has shape {arrays[key].shape}, expected {shape}"
        for key, shape in shapes.items()
        if key in arrays and arrays[key].shape != shape
    ]
    parts = {
        f"{len(missing)} of {len(required)} missing": missing,
        f"{len(unexpected)} unexpected": unexpected,
        f"{len(wrong)} of another shape": wrong,
    }
    return "; ".join(
        f"{title}: {', '.join(names[:MAX_NAMES])}{', ...' * (len(names) > MAX_NAMES)}"
        for title, names in parts.items()
        if names
    )


def find_network(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the name of the network of the zoo that has most of the arrays; "" if none is near.

    Only networks with the same convolutions in their blocks are considered, so that few are traced.
    The head is not compared.

    Args:
      arrays: arrays by their names in a layout, or by resflax's (`flatten`).
    """
    channels, traits = block_channels(arrays), _traits_of_names(arrays)
    scores = {
        name: _share_of_arrays(spec, arrays)
        for name, spec in _candidates(channels)
        if _channels_of_spec(spec) == channels and _traits_of_spec(spec) == traits
    }
    # Plain networks have the parameters of those with parameter-free shortcuts, which are likelier.
    return max(scores, key=lambda name: (scores[name], "plain" not in name, -len(name)), default="")


def network_name(spec: Spec) -> str:
    """Returns the name of the network in the zoo that has the parameters of a spec; "" if none."""
    body = _without_training(spec)
    candidates = _candidates(_channels_of_spec(spec))
    return next((name for name, other in candidates if _without_training(other) == body), "")


def _without_training(spec: Spec) -> Spec:
    return spec.override(num_classes=0, **dict.fromkeys(RATES, 0.0), zero_init=True)


def describe_network(arrays: Mapping[str, np.ndarray], spec: Spec | None = None) -> str:
    """Returns which network arrays are of, for an error; "" if that is not known.

    Args:
      arrays: arrays by name.
      spec: the network that they do not fit; nothing is returned if no other fits better.

    >>> describe_network({"blocks.0.attn.qkv.weight": np.ones((3, 3))})
    'no ResNet has such names as blocks.0.attn.qkv.weight'
    """
    share = _share_of_arrays(spec, arrays) if spec else 0.0
    if name := find_network(arrays):
        is_better = _share_of_arrays(get_spec(name), arrays) > share
        return f"these look like {name}'s" if is_better else ""
    if share > MIN_SHARE or not arrays:
        return ""
    if channels := block_channels(arrays):
        depths = ", ".join(str(len(stage)) for stage in channels)
        widths = ", ".join(str(stage[0][-1]) for stage in channels)
        return (
            f"they have {depths} blocks in their stages, with {widths} output channels, and no"
            " network of the zoo has these"
        )
    return f"no ResNet has such names as {next(iter(arrays))}"


def block_channels(arrays: Mapping[str, np.ndarray]) -> Channels:
    """Returns the output channels of the convolutions in the blocks; () if there are none."""
    tables = [table(SPECS["resnet50"]) for table in LAYOUTS.values()]
    formats = [
        (table.block, [f".{table.inner[f'conv{i}']}.weight" for i in (1, 2, 3)], 0)
        for table in tables
    ]
    formats.append(
        ("params/stage{stage}_block{block}", [f"/conv{i}/kernel" for i in (1, 2, 3)], -1)
    )
    found = [tuple(_stages(arrays, *row)) for row in formats]
    return max(found, key=len)


def _stages(
    arrays: Mapping[str, np.ndarray], block_format: str, convs: list[str], axis: int
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yields the channels of each stage, by the names of one layout."""

    def channels(stage: int, block: int) -> tuple[int, ...]:
        prefix = block_name(block_format, stage, block)
        keys = [key for conv in convs if (key := prefix + conv) in arrays]
        return tuple(arrays[key].shape[axis] for key in keys if arrays[key].ndim > 1)

    stage = 1
    while channels(stage, 1):
        blocks = list[tuple[int, ...]]()
        while row := channels(stage, len(blocks) + 1):
            blocks.append(row)
        yield tuple(blocks)
        stage += 1


def _candidates(channels: Channels) -> Iterator[tuple[str, Spec]]:
    """Yields the networks of the zoo, and those for small images of the given depth."""
    if not channels:
        return
    yield from SPECS.items()
    blocks, convs = len(channels[0]), len(channels[0][0])
    depth = len(channels) * blocks * convs + 2
    factor = channels[0][0][0] // 16
    names = [
        f"{family}{depth}" for family in ("cifar_resnet", "cifar_plain", "cifar_preact_resnet")
    ]
    for name in [*names, f"wrn{depth + 2}_{factor}"]:
        try:
            spec = parse_name(name)
        except UserError:  # no such depth
            continue
        if spec is not None and name not in SPECS:
            yield name, spec


def _channels_of_spec(spec: Spec) -> Channels:
    return tuple(tuple(block.channels for block in stage) for stage in spec.stages)


def _traits_of_spec(spec: Spec) -> tuple[bool, ...]:
    """Returns what the names of a network's arrays show without tracing it."""
    has_deep_stem = spec.stem in ("deep", "tiered", "rs")
    return spec.attention != "none", spec.norm == "batch", spec.preact, has_deep_stem


def _traits_of_names(names: Mapping[str, Any]) -> tuple[bool, ...]:
    """Returns the same traits from names of arrays."""
    text = "\n".join(names)
    return (
        ".se." in text or "/se_fc" in text or "/eca_conv" in text,
        "running_mean" in text or "batch_stats/" in text,
        any(name.startswith(("stages.", "params/head_norm/")) for name in names),
        any(name.startswith(("conv1.", "stem.conv1.", "params/stem_conv1/")) for name in names)
        and "conv1.weight" not in names,
    )


def _share_of_arrays(spec: Spec, arrays: Mapping[str, np.ndarray]) -> float:
    """Returns how many arrays a network and the given ones have in common, of all of both."""
    tree = variable_shapes(spec.override(num_classes=0), 3)
    flat = traverse_util.flatten_dict(tree, sep="/")
    shapes = [{key: array.shape for key, array in flat.items()}] + [
        {s.key: s.shape for s in specs}
        for layout in LAYOUTS
        if (specs := array_specs(layout, spec, tree)) is not None
    ]
    given = {key: array.shape for key, array in arrays.items()}
    return max(
        len(given.items() & row.items()) / len(given.items() | row.items()) for row in shapes
    )
