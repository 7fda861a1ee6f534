"""Weight decay: which parameters decay, and how fast."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from resflax.errors import unknown
from resflax.train.learning_rate import Factors, check_factors, pattern_factors

Mask = Callable[[Any], Any]
Decay = float | Float[Array, ""]

DECAY_MASKS = ("kernels", "all")


def decay_mask(name: str) -> Mask:
    """Selects the parameters that weight decay applies to, and the trust ratios of LARS and LAMB.

    Args:
      name: "kernels", without biases and norm scales, or "all".

    Returns:
      A function from parameters to a tree of bools, as optax's masks are.

    Raises:
      UserError: on an unknown name.
    """
    if name not in DECAY_MASKS:
        raise unknown("decay_mask", name, DECAY_MASKS)

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: name == "all" or path[-1].key == "kernel", params
        )

    return mask


def add_decay(
    weight_decay: Decay, mask: Mask, factors: Factors = ()
) -> optax.GradientTransformation:
    """Adds `weight_decay * factor * w` to the updates of the parameters that a mask selects.

    Args:
      weight_decay: 0 for none; it may be a traced float32 scalar.
      mask: see `decay_mask`.
      factors: pairs of a pattern and the factor of what it matches; see `pattern_factors`.

    >>> decay = add_decay(0.1, decay_mask("all"), [("head", 2.0)])
    >>> params = {"head": {"kernel": jnp.ones(1)}, "stem_conv": {"kernel": jnp.ones(1)}}
    >>> updates, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    >>> [updates[name]["kernel"].tolist() for name in ("head", "stem_conv")]
    [[0.20000000298023224], [0.10000000149011612]]
    """
    if not factors:
        return optax.add_decayed_weights(weight_decay, mask)

    def add(update: Array, param: Array, selected: bool, factor: Any) -> Array:
        if not selected:
            return update
        return update + weight_decay * jnp.asarray(factor, param.dtype) * param

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(add, updates, params, mask(params), pattern_factors(params, factors))

    return optax.stateless(update)


def check_decay_factors(params: Any, mask: Mask, factors: Sequence[tuple[str, float]]) -> None:
    """Raises `UserError` if a pattern matches none of the parameters that decay.

    Args:
      params: trainable parameters, arrays or shapes.
      mask: see `decay_mask`.
      factors: pairs of a pattern and a factor.
    """
    decayed = jax.tree.map(lambda leaf, selected: leaf if selected else None, params, mask(params))
    check_factors(decayed, factors, "config.weight_decay_factors", "decays")
