"""Names and shapes of a network's arrays in the state dicts of a layout."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from flax import traverse_util

from resflax.nn import Spec
from resflax.weights.layouts import LAYOUTS, Path

TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "v": "v",  # EvoNorm-S0
    "gain": "gain",  # scaled weight standardization
    "tau": "tau",  # filter response norm
}


class ArraySpec(NamedTuple):
    """Path, torch name and torch shape of one array.

    Attributes:
      path: collection, modules and leaf in the variables.
      key: name in the state dict.
      shape: shape in the state dict, with torch's axis order.
    """

    path: Path
    key: str
    shape: tuple[int, ...]


def array_specs(layout: str, spec: Spec, variables: Any) -> list[ArraySpec] | None:
    """Returns one `ArraySpec` per array, or None if the layout cannot name all of them.

    Args:
      layout: a key of `LAYOUTS`.
      spec: the architecture.
      variables: arrays or `jax.ShapeDtypeStruct`s in the tree of `scan=False`.
    """
    specs = list(_array_specs(layout, spec, variables))
    named = [row for row in specs if isinstance(row, ArraySpec)]
    return named if len(named) == len(specs) else None


def unnamed_array(layout: str, spec: Spec, variables: Any) -> str:
    """Returns the path of the first array that a layout cannot name; "" if it can name all."""
    rows = _array_specs(layout, spec, variables)
    return next((row for row in rows if isinstance(row, str)), "")


def _array_specs(layout: str, spec: Spec, variables: Any) -> Iterator[ArraySpec | str]:
    """Yields one row per array: its path as text if the layout cannot name it."""
    table = LAYOUTS[layout](spec)
    flat = traverse_util.flatten_dict(variables)
    for path, array in flat.items():
        _, *modules, leaf = path
        name = table.module_name(tuple(modules))
        if name is None or leaf not in TORCH_LEAVES:
            yield "/".join(path[1:])
            continue
        shape = (*array.shape[:-3:-1], *array.shape[:-2]) if leaf == "kernel" else array.shape
        if leaf == "kernel" and modules[-1] in table.conv1x1:
            shape = (*shape, *[1] * spec.dimensions)
        if leaf == "gain":
            shape = (*shape, *[1] * (len(flat[(*path[:-1], "kernel")].shape) - 1))
        yield ArraySpec(path, f"{name}.{TORCH_LEAVES[leaf]}", shape)
