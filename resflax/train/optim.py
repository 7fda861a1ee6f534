"""Optimizers: optax chains from names and numbers."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from resflax.errors import unknown
from resflax.train.clipping import CLIPPINGS

DECAY_MASKS = ("kernels", "all")
Mask = Callable[[Any], Any]
Chain = list[optax.GradientTransformation]
Decay = float | Float[Array, ""]


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


def _sgd(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: Decay,
    **_: Any,
) -> Chain:
    has_decay = isinstance(weight_decay, jax.Array) or weight_decay
    decay = [optax.add_decayed_weights(weight_decay, mask)] if has_decay else []
    return [*decay, optax.sgd(rate, momentum or None, nesterov and momentum > 0)]


def _adamw(rate: optax.ScalarOrSchedule, mask: Mask, *, weight_decay: Decay, **_: Any) -> Chain:
    return [optax.adamw(rate, weight_decay=weight_decay, mask=mask)]


def _lars(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: Decay,
    trust_coefficient: float,
) -> Chain:
    lars = optax.lars(
        rate,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=mask,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
    )
    return [lars]


def _lamb(rate: optax.ScalarOrSchedule, mask: Mask, *, weight_decay: Decay, **_: Any) -> Chain:
    # As `optax.lamb`, whose mask applies to the weight decay only.
    return [
        optax.scale_by_adam(eps=1e-6),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(rate),
    ]


# `(rate, mask, momentum=, nesterov=, weight_decay=, trust_coefficient=) -> transformations`.
OPTIMIZERS: dict[str, Callable[..., Chain]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "lars": _lars,
    "lamb": _lamb,
}


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: Decay = 0.0,
    mask: str = "kernels",
    trust_coefficient: float = 0.001,
    grad_clip_norm: float = 0.0,
    grad_clip_mode: str = "norm",
) -> optax.GradientTransformation:
    """Makes an optimizer by name.

    Args:
      name: "sgd", with weight decay as the paper's L2 penalty, added to the gradient; "adamw", with
        decoupled weight decay (Loshchilov and Hutter 2019); "lars" (You et al. 2017,
        arXiv:1708.03888, algorithm 1), SGD with each kernel's step scaled to
        `trust_coefficient |w| / |g + weight_decay w|`, where the paper divides by the sum of the
        two norms; "lamb" (You et al. 2019, arXiv:1904.00962, algorithm 2), Adam with decoupled
        weight decay, scaled to `|w|`.
      learning_rate: a number or a schedule.
      momentum: momentum of SGD and LARS.
      nesterov: Nesterov momentum for SGD and LARS; the LARS paper does not use it.
      weight_decay: 0 for none; it may be a traced float32 scalar.
      mask: parameters that weight decay and trust ratios apply to; see `decay_mask`.
      trust_coefficient: trust coefficient of LARS.
      grad_clip_norm: clip the gradient to this norm; 0 for no clipping.
      grad_clip_mode: what that limits, a name in `CLIPPINGS`: "norm" (the global norm), "value"
        (each element), or "agc" (each unit's norm, as a multiple of that of its weights).

    Raises:
      UserError: on an unknown name.
    """
    selected = decay_mask(mask)
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    chain = OPTIMIZERS[name](
        learning_rate,
        selected,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
    )
    if grad_clip_mode not in CLIPPINGS:
        raise unknown("grad_clip_mode", grad_clip_mode, CLIPPINGS)
    clip = [CLIPPINGS[grad_clip_mode](grad_clip_norm)] if grad_clip_norm else []
    return optax.chain(*clip, *chain)
