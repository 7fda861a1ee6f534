"""Optimisers: chains of optax, put together from names and numbers."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from resflax.errors import unknown

DECAY_MASKS = ("kernels", "all")
Mask = Callable[[Any], Any]
Rules = list[optax.GradientTransformation]


def decay_mask(name: str) -> Mask:
    """Which parameters weight decay acts on: "kernels", not biases and norm scales; or "all".

    The trust ratios of LARS and LAMB act on the same ones.

    Returns:
      A function from parameters to a tree of bools, as optax's `mask`.

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
    where: Mask,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    **_: Any,
) -> Rules:
    decay = [optax.add_decayed_weights(weight_decay, where)] if weight_decay else []
    return [*decay, optax.sgd(rate, momentum or None, nesterov and momentum > 0)]


def _adamw(rate: optax.ScalarOrSchedule, where: Mask, *, weight_decay: float, **_: Any) -> Rules:
    return [optax.adamw(rate, weight_decay=weight_decay, mask=where)]


def _lars(
    rate: optax.ScalarOrSchedule,
    where: Mask,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    trust_coefficient: float,
) -> Rules:
    lars = optax.lars(
        rate,
        weight_decay=weight_decay,
        weight_decay_mask=where,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=where,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
    )
    return [lars]


def _lamb(rate: optax.ScalarOrSchedule, where: Mask, *, weight_decay: float, **_: Any) -> Rules:
    # `optax.lamb`, whose own mask is of the decay alone.
    return [
        optax.scale_by_adam(eps=1e-6),
        optax.add_decayed_weights(weight_decay, where),
        optax.masked(optax.scale_by_trust_ratio(), where),
        optax.scale_by_learning_rate(rate),
    ]


# `(rate, where, momentum=, nesterov=, weight_decay=, trust_coefficient=) -> rules`, in order.
OPTIMIZERS: dict[str, Callable[..., Rules]] = {
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
    weight_decay: float = 0.0,
    mask: str = "kernels",
    trust_coefficient: float = 0.001,
    grad_clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """An optimiser by name.

    Args:
      name: "sgd", whose weight decay is the L2 penalty of the paper, added to the gradient;
        "adamw", whose weight decay is decoupled (Loshchilov and Hutter 2019); "lars" (You et al.
        2017, arXiv:1708.03888, algorithm 1), SGD whose steps are scaled, kernel by kernel, to
        `trust_coefficient |w| / |g + weight_decay w|`, where the paper has the sum of the two
        norms; "lamb" (You et al. 2019, arXiv:1904.00962, algorithm 2), Adam with decoupled weight
        decay, scaled to `|w|`.
      learning_rate: a number or a schedule.
      momentum: of SGD and LARS.
      nesterov: SGD or LARS looks ahead; the paper of LARS does not.
      weight_decay: 0 for none.
      mask: what weight decay and trust ratios act on; see `decay_mask`.
      trust_coefficient: of LARS.
      grad_clip_norm: scale the gradient down to this global norm; 0 for never.

    Raises:
      UserError: on an unknown name.
    """
    where = decay_mask(mask)
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    rules = OPTIMIZERS[name](
        learning_rate,
        where,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
    )
    clip = [optax.clip_by_global_norm(grad_clip_norm)] if grad_clip_norm else []
    return optax.chain(*clip, *rules)
