"""Schedules and optimisers: pure pairs of optax, put together from names and numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from resflax.errors import unknown

SCHEDULES = ("constant", "step", "cosine")
OPTIMIZERS = ("sgd", "adamw")
DECAY_MASKS = ("kernels", "all")


def make_schedule(
    name: str,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate by step.

    Args:
      name: "constant"; "step": times `factor` at each boundary (He et al. 2015); "cosine": to zero
        at the last step (Loshchilov and Hutter 2017).
      peak: the largest learning rate.
      steps: of the whole run.
      warmup_steps: linear from `peak / warmup_steps` to `peak` (Goyal et al. 2017, section 2.2).
      boundaries: steps, counted from the run's start; none inside the warm-up.
      factor: see "step".

    Raises:
      UserError: on an unknown name.

    >>> schedule = make_schedule("step", peak=0.1, steps=64, boundaries=(32, 48))
    >>> [round(float(schedule(step)), 4) for step in (0, 31, 32, 48)]
    [0.1, 0.1, 0.01, 0.001]
    """
    if name == "constant":
        main = optax.constant_schedule(peak)
    elif name == "step":
        at: dict[int, float] = {}
        for boundary in boundaries:  # two may fall on one step
            at[boundary - warmup_steps] = at.get(boundary - warmup_steps, 1.0) * factor
        main = optax.piecewise_constant_schedule(peak, at)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, steps - warmup_steps))
    else:
        raise unknown("schedule", name, SCHEDULES)
    if not warmup_steps:
        return main
    # Not from 0: a first step that does nothing is lost.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, main], [warmup_steps])


def decay_mask(name: str) -> Any:
    """Which parameters weight decay acts on: "kernels", not biases and norm scales; or "all".

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


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    mask: str = "kernels",
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """An optimiser by name.

    Args:
      name: "sgd", whose weight decay is the L2 penalty of the paper, added to the gradient; or
        "adamw", whose weight decay is decoupled (Loshchilov and Hutter 2019).
      learning_rate: a number or a schedule.
      momentum: of SGD.
      nesterov: SGD looks ahead.
      weight_decay: 0 for none.
      mask: see `decay_mask`.
      clip_norm: scale the gradient down to this global norm; 0 for never.

    Raises:
      UserError: on an unknown name.
    """
    where = decay_mask(mask)
    if name == "sgd":
        decay = [optax.add_decayed_weights(weight_decay, where)] if weight_decay else []
        rule = [*decay, optax.sgd(learning_rate, momentum or None, nesterov and momentum > 0)]
    elif name == "adamw":
        rule = [optax.adamw(learning_rate, weight_decay=weight_decay, mask=where)]
    else:
        raise unknown("optimizer", name, OPTIMIZERS)
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(*clip, *rule)
