"""Sharpness-aware minimization (SAM): the gradient at a nearby point of higher loss."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

Tree = TypeVar("Tree")
# A gradient of 0 leaves the parameters where they are.
MIN_NORM = 1e-12


def perturb(params: Tree, grads: Any, rho: float) -> Tree:
    """Returns `w + rho g / |g|`, with the norm over all parameters.

    To first order it is the point of the highest loss at a distance of at most rho (Foret et al.
    2020, arXiv:2010.01412, equation 2 with p = 2).

    Args:
      params: trainable parameters, float arrays.
      grads: the gradient of the loss there, over the global batch, with the same structure, shapes
        and dtypes.
      rho: the distance, 0 or more.

    >>> perturb({"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}, 0.5)["w"].tolist()
    [0.30000001192092896, 0.4000000059604645]
    """
    scale = rho / jnp.maximum(optax.tree.norm(grads), MIN_NORM)
    return jax.tree.map(lambda w, g: w + scale.astype(g.dtype) * g, params, grads)
