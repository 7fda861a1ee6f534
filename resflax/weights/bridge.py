"""State dicts of torch to variables and back, bit for bit."""

from collections.abc import Mapping
from functools import lru_cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resflax.errors import UserError, unknown
from resflax.nn import Spec, stack_params, unstack_params
from resflax.weights.layouts import COUNT, LAYOUTS, ArraySpec, default_layout, slots
from resflax.zoo import create_model, get_spec

Variables = dict[str, Any]
# What wrappers of torch put before every key.
PREFIXES = ("module.", "_orig_mod.")


@lru_cache(maxsize=16)
def shapes_of(spec: Spec, channels: int = 3) -> Variables:
    """Shapes and dtypes of a network's variables, for images of so many channels; no arithmetic."""
    model = create_model(spec, scan=spec.pruned is None)  # traces each stage's block but once

    def init() -> Any:
        image = jnp.zeros((1, 64, 64, channels))
        return unstack_params(model.init(jax.random.key(0), image, train=False))

    return jax.eval_shape(init)


def from_torch(
    name: str | Spec,
    state_dict: Mapping[str, Any],
    *,
    channels: int = 3,
    scan: bool | None = None,
    **overrides: Any,
) -> Variables:
    """The variables that a network of torch's is, for `create_model(name, **overrides).apply`.

    The layout is found from the keys: torchvision's and timm's, Hugging Face's, or that of
    akamaster's nets for CIFAR; "module." before every key is taken off.

    Args:
      name: of the network.
      state_dict: names to arrays (NumPy's, or what NumPy can read), all of them and no others.
        Counts of batches (`num_batches_tracked`) may be missing.
      channels: of the images.
      scan: whether the network scans; by default as `create_model` has it.
      **overrides: fields of the spec, as `num_classes=10` for a net with ten classes.

    Returns:
      "params" and, with batch norm, "batch_stats": NumPy arrays of the dtypes given. Counts of
      batches that are not zero lie in "num_batches_tracked", which no network reads.

    Raises:
      UserError: listing all keys that are missing or left over and all shapes that are wrong.
    """
    spec = get_spec(name).override(**overrides)
    arrays = _without_prefix(state_dict)
    wanted = shapes_of(spec, channels)
    places = _nearest(spec, wanted, arrays)
    counts = [_count(slot) for slot in places if slot.path[-1] == "mean"]
    _compare(
        f"this is no state dict of {_called(name)}",
        {slot.key: slot.shape for slot in places},
        {slot.key: slot.shape for slot in counts},
        arrays,
    )
    flat = {slot.path: _to_ours(slot, arrays[slot.key], wanted) for slot in places}
    found = {slot.path: arrays[slot.key] for slot in counts if slot.key in arrays}
    if any(count.any() for count in found.values()):
        flat |= found
    variables = traverse_util.unflatten_dict(flat)
    scans = create_model(spec, scan=scan).scan
    return stacked(variables) if scans else variables


def stacked(variables: Variables) -> Variables:
    """As a network of `scan=True` has them; counts stay as torch has them."""
    return {k: tree if k == COUNT else stack_params(tree) for k, tree in variables.items()}


def to_torch(
    name: str | Spec, variables: Variables, *, layout: str | None = None, **overrides: Any
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: names to contiguous NumPy arrays.

    Args:
      name: of the network.
      variables: its "params" and "batch_stats", stacked (`scan=True`) or not.
      layout: "timm" (torchvision's too), "timm_v2", "huggingface" or "cifar"; by default timm's,
        and "cifar" for post-activation nets for small images.
      **overrides: fields of the spec; the number of classes is the variables' own.

    Raises:
      UserError: if the variables are not that network's, or the layout cannot name its parts.
    """
    spec = get_spec(name).override(**overrides)
    if "num_classes" not in overrides:
        spec = spec.override(num_classes=_classes(variables))
    layout = layout or default_layout(spec)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    flat = traverse_util.flatten_dict(unstack_params(variables))
    flat = {path: np.asarray(array) for path, array in flat.items()}
    channels = next((a.shape[-2] for path, a in flat.items() if path[1].startswith("stem_conv")), 3)
    places = slots(layout, spec, shapes_of(spec, channels))
    if places is None:
        raise UserError(f"layout {layout!r} has no names for the parts of {_called(name)}")
    counts = [_count(slot) for slot in places if slot.path[-1] == "mean"]
    _compare_ours(name, counts, flat, shapes_of(spec, channels))
    result = {slot.key: _to_theirs(slot, flat[slot.path]) for slot in places}
    if LAYOUTS[layout](spec).counts or any(count.path in flat for count in counts):
        zero = np.zeros((), np.int64)
        result |= {c.key: flat.get(c.path, zero).astype(np.int64) for c in counts}
    return result


def flatten(variables: Variables) -> dict[str, np.ndarray]:
    """Every array under its path, as "params/stage1_block1/conv1/kernel"; what `convert` writes."""
    flat = traverse_util.flatten_dict(unstack_params(variables), sep="/")
    return {path: np.asarray(array, order="C") for path, array in flat.items()}


def is_flat(arrays: Mapping[str, Any]) -> bool:
    """Whether these are what `flatten` gave."""
    return any(name.startswith("params/") for name in arrays)


def unflatten(name: str | Spec, arrays: Mapping[str, Any], *, channels: int = 3) -> Variables:
    """The inverse of `flatten`, for the network of that name.

    Raises:
      UserError: listing what is missing, left over or of another shape.
    """
    spec = get_spec(name)
    flat = {tuple(path.split("/")): np.asarray(array) for path, array in arrays.items()}
    wanted = shapes_of(spec, channels)
    places = slots(default_layout(spec), spec, wanted) or []
    counts = [_count(slot) for slot in places if slot.path[-1] == "mean"]
    _compare_ours(name, counts, flat, wanted)
    return traverse_util.unflatten_dict(flat)


def replace_head(variables: Variables, num_classes: int, *, seed: int = 0) -> Variables:
    """The same variables with a freshly initialised head of so many classes; all else untouched.

    With 0 classes there is none.

    Raises:
      UserError: if there is no head to replace, or no such number of classes.

    >>> old = {"params": {"head": {"kernel": np.ones((4, 9)), "bias": np.ones(9)}}}
    >>> replace_head(old, 2)["params"]["head"]["kernel"].shape
    (4, 2)
    """
    import flax.linen as nn

    if "head" not in variables["params"]:
        raise UserError("these variables have no head to replace: expected a network with classes")
    if type(num_classes) is not int or num_classes < 0:
        raise UserError(f"num_classes is {num_classes!r}: expected 0 or more")
    if not num_classes:
        body = {name: tree for name, tree in variables["params"].items() if name != "head"}
        return {**variables, "params": body}
    inputs = variables["params"]["head"]["kernel"].shape[0]
    head = nn.Dense(num_classes).init(jax.random.key(seed), jnp.zeros((1, inputs)))["params"]
    head = {name: np.asarray(array) for name, array in head.items()}
    return {**variables, "params": {**variables["params"], "head": head}}


def _classes(variables: Variables) -> int:
    head = variables.get("params", {}).get("head")
    return int(head["kernel"].shape[-1]) if head else 0


def _called(name: str | Spec) -> str:
    return name if isinstance(name, str) else "this spec"


def _without_prefix(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    for prefix in PREFIXES:
        if arrays and all(key.startswith(prefix) for key in arrays):
            return _without_prefix({k.removeprefix(prefix): v for k, v in arrays.items()})
    return arrays


def _nearest(spec: Spec, wanted: Variables, arrays: Mapping[str, Any]) -> list[ArraySpec]:
    """The layout that shares most keys with the arrays; the default one among equals."""
    order = sorted(LAYOUTS, key=lambda layout: layout != default_layout(spec))
    named = [places for layout in order if (places := slots(layout, spec, wanted)) is not None]
    if not named:
        raise UserError("no layout has names for all parts of this network")
    return max(named, key=lambda places: sum(slot.key in arrays for slot in places))


def _count(mean: ArraySpec) -> ArraySpec:
    key = mean.key.removesuffix("running_mean") + COUNT
    return ArraySpec((COUNT, *mean.path[1:-1], "count"), key, ())


def _compare(
    what: str, expected: Mapping[str, Any], optional: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    """Raises `UserError` with all that is missing, left over, or of another shape than expected."""
    faults = [f"missing {key}" for key in expected if key not in found]
    faults += [f"left over {key}" for key in found if key not in expected and key not in optional]
    faults += [
        f"{key} is {found[key].shape}, expected {shape}"
        for key, shape in {**expected, **optional}.items()
        if key in found and found[key].shape != shape
    ]
    if faults:
        raise UserError(f"{what}: {'; '.join(faults)}")


def _compare_ours(
    name: str | Spec, counts: list[ArraySpec], flat: dict[Any, Any], wanted: Variables
) -> None:
    _compare(
        f"these are no variables of {_called(name)}",
        {key: x.shape for key, x in traverse_util.flatten_dict(wanted, sep="/").items()},
        {"/".join(slot.path): slot.shape for slot in counts},
        {"/".join(path): array for path, array in flat.items()},
    )


def _to_ours(slot: ArraySpec, array: np.ndarray, wanted: Variables) -> np.ndarray:
    """Torch's (out, in, height, width) to (height, width, in, out); a matrix where ours is one."""
    if slot.path[-1] != "kernel":
        return np.ascontiguousarray(array)
    shape: Any = reduce(lambda tree, part: tree[part], slot.path, wanted)
    array = array.reshape(array.shape[: len(shape.shape)])
    return np.ascontiguousarray(np.moveaxis(array, (1, 0), (-2, -1)))


def _to_theirs(slot: ArraySpec, array: np.ndarray) -> np.ndarray:
    if slot.path[-1] == "kernel":
        array = np.moveaxis(array, (-1, -2), (0, 1)).reshape(slot.shape)
    return np.ascontiguousarray(array)
