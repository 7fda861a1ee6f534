"""The members of an efficient ensemble as single networks."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resflax.errors import UserError
from resflax.nn.fields import is_shipped
from resflax.nn.functions import describe
from resflax.nn.scan import unstack_params
from resflax.nn.spec import Spec

Variables = Any
IMAGE_CONVS = ("stem_conv", "stem_conv1")
NORM_ARRAYS = ("scale", "bias", "mean", "var", "v", "tau")


def split_members(spec: Spec, variables: Variables) -> list[Variables]:
    """Returns the variables of each member, those of `ResNet(spec.member)` without `scan`.

    In evaluation, each of these networks computes the logits of its member. BatchEnsemble's
    factors are multiplied into the kernels, and MIMO's first kernel is summed over the members,
    since all of them read the same image; its members share all parameters but the head's.

    Args:
      spec: the architecture.
      variables: its variables, stacked or not, with NumPy or JAX arrays.

    Returns:
      One tree of NumPy arrays per member; a single one for a spec without ensemble.

    Raises:
      UserError: if the ensemble is not as the library ships it.

    >>> spec = Spec((1,), (8,), "basic", "cifar", 8, ensemble="packed", members=2, alpha=2.0)
    >>> kernel = np.ones((3, 3, 3, 16))
    >>> members = split_members(spec, {"params": {"stem_conv": {"kernel": kernel}}})
    >>> [member["params"]["stem_conv"]["kernel"].shape for member in members]
    [(3, 3, 3, 8), (3, 3, 3, 8)]
    """
    if not is_shipped("ensemble", spec.ensemble):
        raise UserError(
            f"ensemble is {describe(spec.ensemble)}, a row that was added or replaced: expected one"
            f" of {', '.join(SPLITS)} as the library ships it, whose members can be split"
        )
    unrolled = unstack_params(jax.tree.map(np.asarray, variables))
    return [SPLITS[spec.ensemble](unrolled, k, spec.members) for k in range(spec.members)]


def _fold_factors(tree: Any, member: int, members: int) -> Any:
    """Multiplies the rank-1 factors of a member into the kernels, and selects its norms.

    Other arrays, such as the kernel of ECA and those of modules that a function makes, are shared.
    """
    folded = {}
    for name, node in tree.items():
        if not isinstance(node, dict):
            is_members = name in NORM_ARRAYS and node.ndim == 2 and len(node) == members
            folded[name] = node[member] if is_members else node
        elif f"{name}_s" in tree:
            before, after = tree[f"{name}_r"], tree[f"{name}_s"]
            scale = before["scale"][member][:, None] * after["scale"][member]
            folded[name] = {"kernel": node["kernel"] * scale}
            if "bias" in after:
                folded[name]["bias"] = after["bias"][member]
        elif name[-2:] not in ("_r", "_s"):
            folded[name] = _fold_factors(node, member, members)
    return folded


def _select_channels(tree: Any, member: int, members: int) -> Any:
    """Selects a member's part of the last axis of every array."""

    def select(array: np.ndarray) -> np.ndarray:
        size = array.shape[-1] // members
        return array[..., member * size : (member + 1) * size]

    return jax.tree.map(select, tree)


def _select_head(variables: Any, member: int, members: int) -> Any:
    """Sums the first kernel over the members' images, and selects a member's part of the head."""
    params = dict(variables["params"])
    name = next(name for name in IMAGE_CONVS if name in params)
    kernel = params[name]["kernel"]
    height, width, channels, out = kernel.shape
    parts = kernel.reshape(height, width, members, channels // members, out)
    params[name] = {"kernel": parts.sum(2)}
    if "head" in params:
        params["head"] = _select_channels(params["head"], member, members)
    return {**variables, "params": params}


# `(variables, member, members) -> variables` of each row of `ENSEMBLES`.
SPLITS: dict[str, Callable[[Any, int, int], Any]] = {
    "none": lambda variables, member, members: variables,
    "batch": _fold_factors,
    "packed": _select_channels,
    "mimo": _select_head,
}
