"""Makes an optimizer: a row of the table, with clipping before it and scales after it."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from resflax.errors import UserError, unknown
from resflax.train.clipping import CLIPPINGS
from resflax.train.learning_rate import Factors
from resflax.train.optimizers import OPTIMIZERS, default_betas
from resflax.train.weight_decay import Decay, add_decay, decay_mask


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: Decay = 0.0,
    weight_decay_factors: Factors = (),
    mask: str = "kernels",
    trust_coefficient: float = 0.001,
    betas: Sequence[float] = (),
    eps: float = 0.0,
    grad_clip: float = 0.0,
    grad_clip_mode: str = "norm",
    after: Sequence[optax.GradientTransformation] = (),
) -> optax.GradientTransformation:
    """Makes an optimizer by name.

    Args:
      name: a name in `OPTIMIZERS`:
        "sgd", with weight decay as the paper's L2 penalty, added to the gradient;
        "adamw", with decoupled weight decay (Loshchilov and Hutter 2019), as in all below except
        "rmsprop" and "schedule_free_sgd"; without weight decay it is Adam;
        "nadamw", AdamW with Nesterov momentum (Dozat 2016);
        "lars" (You et al. 2017, arXiv:1708.03888, algorithm 1), SGD with each kernel's step scaled
        to `trust_coefficient |w| / |g + weight_decay w|`, where the paper divides by the sum of
        the two norms;
        "lamb" (You et al. 2019, arXiv:1904.00962, algorithm 2), Adam scaled to `|w|`;
        "lion" (Chen et al. 2023, arXiv:2302.06675);
        "rmsprop", as in TensorFlow and timm's "rmsproptf": with momentum of steps that include the
        learning rate, eps inside the root, and a first mean square of 1; weight decay as for SGD;
        "muon" (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): steps of the kernels
        of blocks are orthogonal matrices, with all axes of a convolution but the output channels
        as one, scaled by `0.2 sqrt(max(inputs, outputs))` (Liu et al. 2025, arXiv:2502.16982,
        eq. 4) to the size of those of AdamW, which updates all other parameters;
        "schedule_free_sgd" and "schedule_free_adamw" (Defazio et al. 2024, arXiv:2405.15682), for a
        learning rate that is constant after its warm-up; the parameters to evaluate are those of
        `optax.contrib.schedule_free_eval_params`.
      learning_rate: a number or a schedule.
      momentum: momentum of SGD, LARS, RMSprop and Muon; of schedule-free SGD, the weight of the
        average in the parameters at which gradients are computed.
      nesterov: Nesterov momentum for SGD, LARS and Muon; the LARS paper does not use it.
      weight_decay: 0 for none; it may be a traced float32 scalar.
      weight_decay_factors: pairs of a pattern of parameter names, see `resflax.nn.patterns`, and
        the factor of the weight decay of what it matches.
      mask: parameters that weight decay and trust ratios apply to; see `decay_mask`.
      trust_coefficient: trust coefficient of LARS.
      betas: decay rates of the moments, those of the AdamW part for Muon; () for `default_betas`.
      eps: added to denominators; 0 for the optimizer's own value.
      grad_clip: limit that the gradient is clipped to; 0 for no clipping.
      grad_clip_mode: what that limits, a name in `CLIPPINGS`: "norm" (the global norm), "value"
        (each element), or "agc" (each unit's norm, as a multiple of that of its weights).
      after: transformations of the updates, such as factors of the learning rate.

    Raises:
      UserError: on an unknown name, or on another number of betas than the optimizer has.
    """
    selected = decay_mask(mask)
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    if grad_clip_mode not in CLIPPINGS:
        raise unknown("grad_clip_mode", grad_clip_mode, CLIPPINGS)
    check_betas(name, betas)
    clip = [CLIPPINGS[grad_clip_mode](grad_clip)] if grad_clip else []
    row = OPTIMIZERS[name]
    decay = add_decay(weight_decay, selected, weight_decay_factors)
    has_decay = isinstance(weight_decay, jax.Array) or weight_decay
    numbers: dict[str, Any] = {
        "momentum": momentum,
        "nesterov": nesterov,
        "decay": decay,
        "penalty": [decay] if has_decay else [],
        "trust_coefficient": trust_coefficient,
        **({"betas": tuple(betas)} if betas else {}),
        **({"eps": eps} if eps else {}),
    }
    optimizer = optax.chain(*clip, *row.make(learning_rate, selected, **numbers), *after)
    if row.interpolation is None:
        return optimizer
    weight = row.interpolation(**numbers)
    return optax.contrib.schedule_free(optimizer, learning_rate, b1=weight)


def check_betas(name: str, betas: Sequence[float]) -> None:
    """Raises `UserError` if an optimizer has another number of betas."""
    default = default_betas(name)
    if betas and default and len(betas) != len(default):
        raise UserError(
            f"betas is {tuple(betas)}, but {name} has {len(default)}: expected values such as"
            f" {default}"
        )
