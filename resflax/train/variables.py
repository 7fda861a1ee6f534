"""Variables of a linen module: checks of given ones, and how training changes them."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jaxtyping import Array

from resflax.errors import UserError
from resflax.kernels.varying import vary_over, varying_axes
from resflax.nn import ResNet
from resflax.weights.mismatch import describe_mismatch
from resflax.weights.shapes import module_shapes


def check_variables(
    model: nn.Module, image_shape: tuple[int, ...], variables: Mapping[str, Any]
) -> None:
    """Raises `UserError` unless variables are those of a model, in float32 or float64.

    Args:
      model: a linen module called as `model(x, train=...)`.
      image_shape: shape of one example.
      variables: arrays by collection; a collection without arrays may be left out.
    """
    expected = _flat(module_shapes(model, image_shape))
    arrays = {name: leaf for name, leaf in _flat(variables).items() if hasattr(leaf, "shape")}
    if reason := describe_mismatch({k: v.shape for k, v in expected.items()}, {}, arrays):
        raise UserError(
            f"the variables are not those of {type(model).__name__} for images of {image_shape}:"
            f" {reason}"
        )
    for name, leaf in arrays.items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
            raise UserError(
                f"{name} has dtype {leaf.dtype}, in which small updates are lost: expected float32,"
                " and dtype= of the model for computing in half precision"
            )


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves by their paths, such as "params/head/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check_training(model: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raises `UserError` if training would change which variables a module has.

    The types of a state are those before the first step. A `ResNet` is known to keep them.
    """
    if isinstance(model, ResNet):
        return
    if getattr(model, "axis_name", None):
        model = model.clone(axis_name=None)

    def train(image: Array) -> Any:
        keys = _example_keys(model, 2)
        variables = model.init(jax.random.key(0), image, train=False)
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        updated = model.apply(variables, image, train=True, mutable=list(collections), **keys)[1]
        return keep_types(collections, updated)

    try:
        jax.eval_shape(train, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    except FlaxError as e:
        reason = str(e).partition(" (https://")[0]
        raise UserError(f"{type(model).__name__} cannot be trained: {reason}") from e
    except UserError:
        raise
    except Exception:  # such as a batch size that it does not take: the step reports it
        return


def keep_types(old: Any, new: Any) -> Any:
    """Returns collections after training with the types that they had before.

    Args:
      old: the collections that were mutable, by name.
      new: what `apply` returned for them; it lacks those without variables.

    Raises:
      UserError: if training added or removed variables, or changed their shapes.
    """
    merged = {name: new.get(name, {}) for name in old}
    for name, tree in old.items():
        if _shapes(tree) != _shapes(merged[name]):
            raise UserError(
                f"training changes the structure or shapes of the collection {name!r}: expected"
                " those before it; use self.sow only with the collection 'intermediates'"
            )

    def keep_type(new: Any, old: Any) -> Any:
        return vary_over(varying_axes(old), new.astype(old.dtype))

    return jax.tree.map(keep_type, merged, old)


def _example_keys(model: nn.Module, examples: int) -> dict[str, Any]:
    """Returns what a module that needs random numbers takes for them."""
    if not getattr(model, "needs_rng", False):
        return {}
    return {"dropout_keys": jax.random.split(jax.random.key(0), examples)}


def _shapes(tree: Any) -> Any:
    return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
