"""Clipping of gradients, as a table."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from resflax.nn.scan import REST

MIN_WEIGHT_NORM = 1e-3


def clip_adaptively(limit: float) -> optax.GradientTransformation:
    """Clips the gradient of each unit to `limit` times the norm of the unit's weights (AGC).

    Brock et al. 2021 (arXiv:2102.06171), eq. 3. A unit is an output channel of a kernel, or a whole
    bias, scale or gain. As in the paper, the head is not clipped, and weights have a norm of at
    least 1e-3. Unlike `optax.adaptive_grad_clip`, it knows the stacked parameters of `scan=True`,
    and kernels of any rank.
    """

    def clip(path: Any, gradient: Array, weights: Array) -> Array:
        if path[0].key == "head":
            return gradient
        first = int(any(str(entry.key).endswith(f"_{REST}") for entry in path))
        last = gradient.ndim - (gradient.ndim - first > 1)
        axes = tuple(range(first, last))

        def norm(x: Array) -> Array:
            return jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))

        largest = limit * jnp.maximum(norm(weights), MIN_WEIGHT_NORM)
        size = norm(gradient)
        return jnp.where(size > largest, gradient * (largest / jnp.maximum(size, 1e-6)), gradient)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(clip, gradients, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# From the largest value, that of `grad_clip`, to a transformation.
CLIPPINGS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "norm": optax.clip_by_global_norm,
    "value": optax.clip,
    "agc": clip_adaptively,
}
