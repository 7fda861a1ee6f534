"""Conversion between torch state dicts and linen variables, bit for bit."""

from collections.abc import Mapping
from functools import reduce
from os import PathLike
from typing import Any

import numpy as np
from flax import traverse_util

from resflax.errors import Report, UserError, print_to_stderr, unknown
from resflax.nn import Spec, stack_params, unstack_params
from resflax.nn.functions import describe
from resflax.weights.array_specs import ArraySpec, array_specs, unnamed_array
from resflax.weights.arrays import is_array, to_arrays
from resflax.weights.layouts import (
    BATCH_COUNT,
    LAYOUTS,
    default_layout,
    is_flax_name,
)
from resflax.weights.mismatch import describe_mismatch, describe_network, network_name
from resflax.weights.prefixes import strip_prefixes
from resflax.weights.shapes import variable_shapes
from resflax.weights.unwrap import find_state_dict
from resflax.zoo import create_model, get_spec

Variables = dict[str, Any]


def from_torch(
    name: str | Spec,
    state_dict: Mapping[str, Any],
    *,
    channels: int = 3,
    scan: bool | None = None,
    report: Report = print_to_stderr,
    **overrides: Any,
) -> Variables:
    """Converts a torch state dict to variables for `create_model(name, **overrides).apply`.

    The layout (see `LAYOUTS`) is detected from the keys, after prefixes of wrappers are removed
    (`strip_prefixes`). Dtypes are kept.

    Args:
      name: model name or spec.
      state_dict: names to torch tensors, of any kind that has values, or to NumPy or JAX arrays.
        Every array of the network is required and no others are accepted; only
        `num_batches_tracked` is optional. Also a training checkpoint that contains one
        (`find_state_dict`).
      channels: number of image channels.
      scan: whether the variables are for a model with `scan=True`; by default as `create_model`
        chooses.
      report: called with a message on what was taken from a checkpoint, and removed prefixes.
      **overrides: fields of the spec, such as `num_classes=10`.

    Returns:
      A dict of "params" and, with batch norm, "batch_stats", holding NumPy arrays. Nonzero batch
      counts are kept in a collection "num_batches_tracked", which no network reads.

    Raises:
      UserError: if the arrays are not those of the network. The message has the first missing keys,
        unexpected keys and wrong shapes, how many there are, and the network of the zoo that fits.
    """
    spec = get_spec(name).override(**overrides)
    stripped = strip_prefixes(to_arrays(_state_dict(state_dict, report)))
    if description := str(stripped):
        report(f"using the arrays of the state dict {description}")
    arrays = stripped.arrays
    _check_single(spec)
    shapes = variable_shapes(spec, channels)
    specs = _best_layout(spec, shapes, arrays)
    counts = _count_specs(specs)
    if mismatch := describe_mismatch(
        {s.key: s.shape for s in specs}, {s.key: s.shape for s in counts}, arrays
    ):
        raise UserError(
            f"not a state dict of {_display_name(name)}: {mismatch}{_hint(spec, specs, arrays)}"
        )
    flat = {s.path: _from_torch_axes(s, arrays[s.key], shapes) for s in specs}
    count_arrays = {s.path: arrays[s.key] for s in counts if s.key in arrays}
    if any(count.any() for count in count_arrays.values()):
        flat |= count_arrays
    variables = traverse_util.unflatten_dict(flat)
    return stack_variables(variables) if create_model(spec, scan=scan).scan else variables


def stack_variables(variables: Variables) -> Variables:
    """Converts variables to the tree of `scan=True`, except batch counts, which stay per block."""
    return {
        name: tree if name == BATCH_COUNT else stack_params(tree)
        for name, tree in variables.items()
    }


def to_torch(
    name: str | Spec, variables: Variables, *, layout: str | None = None, **overrides: Any
) -> dict[str, np.ndarray]:
    """Converts variables to a torch state dict of contiguous NumPy arrays.

    Inverse of `from_torch`.

    Args:
      name: model name or spec.
      variables: "params" and "batch_stats" of a model with `scan=True` or `scan=False`.
      layout: "timm" (also torchvision), "timm_v2", "huggingface", "cifar", "sequential" (the
        children of torchvision's by number) or "torchvision_video". Default: "torchvision_video"
        for networks with a video stem, "timm_v2" for pre-activation networks, "cifar" for other
        networks with the CIFAR stem, else "timm".
      **overrides: fields of the spec; `num_classes` is taken from the variables by default.

    Raises:
      UserError: if the variables do not match the network, or the layout cannot name its modules.
    """
    spec = get_spec(name).override(**overrides)
    if "num_classes" not in overrides:
        spec = spec.override(num_classes=_num_classes(variables))
    _check_single(spec)
    layout = layout or default_layout(spec)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    flat = traverse_util.flatten_dict(unstack_params(variables))
    flat = {path: np.asarray(array) for path, array in flat.items()}
    kernels = {path[1]: array for path, array in flat.items() if path[-1] == "kernel"}
    channels = next((a.shape[-2] for name, a in kernels.items() if name.startswith("stem_conv")), 3)
    shapes = variable_shapes(spec, channels)
    specs = array_specs(layout, spec, shapes)
    if specs is None:
        raise _unnamed(layout, spec, shapes)
    counts = _count_specs(specs)
    _check_variables(name, counts, flat, shapes)
    state_dict = {s.key: _to_torch_axes(s, flat[s.path]) for s in specs}
    if LAYOUTS[layout](spec).zero_counts or any(s.path in flat for s in counts):
        zero = np.zeros((), np.int64)
        state_dict |= {s.key: flat.get(s.path, zero).astype(np.int64) for s in counts}
    return state_dict


def flatten(variables: Variables) -> dict[str, np.ndarray]:
    """Returns arrays by path, such as "params/stage1_block1/conv1/kernel"; always unstacked.

    These are the names that `resflax convert` writes with `--layout flax`.
    """
    flat = traverse_util.flatten_dict(unstack_params(variables), sep="/")
    return {path: np.asarray(array, order="C") for path, array in flat.items()}


def is_flat(arrays: Mapping[str, Any]) -> bool:
    """Returns whether the names are those of `flatten`."""
    return any(map(is_flax_name, arrays))


def unflatten(name: str | Spec, arrays: Mapping[str, Any], *, channels: int = 3) -> Variables:
    """Converts arrays by path to variables in the tree of `scan=False`. Inverse of `flatten`.

    Args:
      name: model name or spec.
      arrays: output of `flatten`.
      channels: number of image channels.

    Raises:
      UserError: listing every missing array, unexpected array and wrong shape.
    """
    spec = get_spec(name)
    flat = {tuple(path.split("/")): np.asarray(array) for path, array in arrays.items()}
    shapes = variable_shapes(spec, channels)
    specs = array_specs(default_layout(spec), spec, shapes) or []
    _check_variables(name, _count_specs(specs), flat, shapes)
    return traverse_util.unflatten_dict(flat)


def _state_dict(content: Any, report: Report) -> Mapping[str, Any]:
    """Returns the state dict in what `from_torch` was given.

    Raises:
      UserError: if it is something else.
    """
    if hasattr(content, "state_dict"):
        raise UserError(f"a {type(content).__name__} was given: pass its state_dict()")
    if isinstance(content, str | PathLike):
        raise UserError(
            f"the path {str(content)!r} was given: expected a state dict, such as"
            " resflax.weights.load_file returns"
        )
    if not isinstance(content, Mapping) or not content or not all(map(is_array, content.values())):
        return find_state_dict(content, "the given checkpoint", report)
    if names := [key for key in content if not isinstance(key, str)]:
        raise UserError(f"the state dict has the key {names[0]!r}: expected names of arrays")
    return content


def _num_classes(variables: Variables) -> int:
    head = variables.get("params", {}).get("head")
    return int(head["kernel"].shape[-1]) if head else 0


def _check_single(spec: Spec) -> None:
    if spec.ensemble != "none":
        raise UserError(
            f"spec.ensemble is {spec.ensemble!r}, and torch has single networks: convert each"
            " member, from spec.member and resflax.nn.split_members"
        )


def _unnamed(layout: str, spec: Spec, shapes: Variables) -> UserError:
    """Returns the error about an array that a layout has no name for."""
    own = ", ".join(f"{field} {describe(part)}" for field, part in spec.own_parts.items())
    hint = "use another layout, or the names of resflax (resflax convert --layout flax)"
    return UserError(
        f"layout {layout!r} has no name for {unnamed_array(layout, spec, shapes)}"
        f"{own and f', of a network with {own}'}: {hint}"
    )


def _display_name(name: str | Spec) -> str:
    return name if isinstance(name, str) else network_name(name) or "this spec"


def _hint(spec: Spec, specs: list[ArraySpec], arrays: Mapping[str, np.ndarray]) -> str:
    """Returns what to do about arrays that do not fit: other classes, or another network."""
    body = {s.key: s.shape for s in specs if s.path[1] != "head"}
    head = [s.key for s in specs if s.path[1] == "head"]
    given = {
        key: array.shape
        for key, array in arrays.items()
        if key not in head and not key.endswith(BATCH_COUNT)
    }
    if given == body:
        classes = next((arrays[key].shape[0] for key in head if key in arrays), 0)
        return f": pass num_classes={classes}" if classes != spec.num_classes else ""
    description = describe_network(arrays, spec)
    return description and f": {description}"


def _best_layout(spec: Spec, shapes: Variables, arrays: Mapping[str, Any]) -> list[ArraySpec]:
    """Returns the specs of the layout that shares most keys with the arrays.

    Ties go to the default layout.
    """
    layouts = sorted(LAYOUTS, key=lambda layout: layout != default_layout(spec))
    candidates = [
        specs for layout in layouts if (specs := array_specs(layout, spec, shapes)) is not None
    ]
    if not candidates:
        raise _unnamed(default_layout(spec), spec, shapes)
    return max(candidates, key=lambda specs: sum(s.key in arrays for s in specs))


def _count_specs(specs: list[ArraySpec]) -> list[ArraySpec]:
    """Returns the specs of the batch counts, one per batch norm."""
    return [
        ArraySpec(
            (BATCH_COUNT, *s.path[1:-1], "count"),
            s.key.removesuffix("running_mean") + BATCH_COUNT,
            (),
        )
        for s in specs
        if s.path[-1] == "mean"
    ]


def _check_variables(
    name: str | Spec, counts: list[ArraySpec], flat: dict[Any, Any], shapes: Variables
) -> None:
    if mismatch := describe_mismatch(
        {key: x.shape for key, x in traverse_util.flatten_dict(shapes, sep="/").items()},
        {"/".join(s.path): s.shape for s in counts},
        arrays := {"/".join(path): array for path, array in flat.items()},
    ):
        hint = describe_network(arrays, get_spec(name))
        raise UserError(f"not variables of {_display_name(name)}: {mismatch}{hint and f': {hint}'}")


def _from_torch_axes(spec: ArraySpec, array: np.ndarray, shapes: Variables) -> np.ndarray:
    """Transposes kernels from (out, in, *space) to (*space, in, out).

    A 1x1 kernel becomes a matrix where the linen parameter is one, and a gain becomes a vector.
    """
    expected: Any = reduce(lambda tree, part: tree[part], spec.path, shapes)
    array = array.reshape(array.shape[: len(expected.shape)])
    if spec.path[-1] != "kernel":
        return np.asarray(array, order="C")
    return np.ascontiguousarray(np.moveaxis(array, (1, 0), (-2, -1)))


def _to_torch_axes(spec: ArraySpec, array: np.ndarray) -> np.ndarray:
    """Inverts `_from_torch_axes`."""
    if spec.path[-1] == "kernel":
        array = np.moveaxis(array, (-1, -2), (0, 1))
    return np.asarray(array.reshape(spec.shape), order="C")
