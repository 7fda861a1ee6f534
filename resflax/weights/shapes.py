"""Shapes of a network's variables, without computing them."""

from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from resflax.nn import Spec, unstack_params
from resflax.zoo import create_model


def variable_shapes(spec: Spec, channels: int = 3) -> dict[str, Any]:
    """Returns shapes and dtypes of a network's variables in the tree of `scan=False`.

    Args:
      spec: the architecture.
      channels: number of image channels.
    """
    return _variable_shapes(spec, channels, spec.parts)


@lru_cache(maxsize=16)
def _variable_shapes(spec: Spec, channels: int, parts: tuple[Any, ...]) -> dict[str, Any]:
    del parts  # of the key only
    # Tracing is faster with scan, which traces each stage's repeated block once.
    model = create_model(spec, scan=spec.pruned is None)
    shapes = module_shapes(model, (*[64] * spec.dimensions, channels))
    return jax.eval_shape(unstack_params, shapes)


def module_shapes(model: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """Returns the shapes and dtypes of a linen module's variables, as it has them.

    Args:
      model: called as `model(x, train=False)`.
      image_shape: shape of one example.
    """

    def init(image: Array) -> Any:
        return model.init(jax.random.key(0), image, train=False)

    return jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def has_batch_stats(spec: Spec) -> bool:
    """Returns whether a network has batch statistics, in parts of the user's own as well.

    >>> from resflax.zoo import get_spec
    >>> spec = get_spec("cifar_resnet8")
    >>> has_batch_stats(spec), has_batch_stats(spec.override(norm="none"))
    (True, False)
    """
    return "batch_stats" in variable_shapes(spec) if spec.own_parts else spec.norm == "batch"
