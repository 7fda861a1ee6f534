"""Averaged parameters, which are evaluated instead of the last ones.

An exponential moving average (Polyak and Juditsky 1992, in its decaying form), or the average that
a schedule-free optimizer has by itself (Defazio et al. 2024, arXiv:2405.15682).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from resflax.train.optimizers import is_schedule_free

Tree = TypeVar("Tree")
Step = Int[Array, ""] | int

# From the number of updates of the average so far to the least share of the new parameters. The
# first update copies them with all but "tensorflow".
EMA_WARMUPS: dict[str, Callable[[Float[Array, ""]], Float[Array, ""]]] = {
    "tensorflow": lambda updates: 9 / (10 + updates),
    "power": lambda updates: (1 + updates) ** (-2 / 3),
    "none": lambda updates: jnp.where(updates > 0, 0.0, 1.0),
}


class EMA(NamedTuple):
    """An exponential moving average of the parameters; see `ema_update`.

    Attributes:
      decay: float from 0 to less than 1; 0 for no average.
      every_steps: steps per update of the average.
      start_step: step before which the average is the parameters themselves.
      warmup: a name in `EMA_WARMUPS`.
    """

    decay: float = 0.0
    every_steps: int = 1
    start_step: int = 0
    warmup: str = "tensorflow"


def ema_update(ema: Tree, params: Tree, average: EMA, step: Step) -> Tree:
    """Returns `d ema + (1 - d) params`, with `d` the decay or less in a warm-up.

    With `t` the number of updates before this one since `start_step`, `d` is at most
    `(1 + t) / (10 + t)` with the warm-up "tensorflow", as in `tf.train.ExponentialMovingAverage`,
    and `1 - (1 + t)^(-2/3)` with "power", as in timm's `ModelEmaV3` with `use_warmup`. They reduce
    the share of the first weights, which is `decay^t` with "none".

    Args:
      ema: the average so far; float leaves.
      params: the weights after the update, with the same structure, shapes and dtypes.
      average: the decay, and the steps at which the average changes.
      step: number of updates of the parameters before this one.

    >>> ema = {"w": jnp.zeros(1)}
    >>> ema_update(ema, {"w": jnp.ones(1)}, EMA(0.999), 0)["w"].tolist()  # d = 1 / 10
    [0.8999999761581421]
    """
    step = jnp.asarray(step, jnp.int32)
    if average.every_steps == 1 and not average.start_step:
        return _ema_update(ema, params, average, step)
    since = step - average.start_step
    is_due = since % average.every_steps == 0
    update = partial(_ema_update, ema, params, average, since // average.every_steps)
    return lax.cond(since < 0, lambda: params, lambda: lax.cond(is_due, update, lambda: ema))


def _ema_update(ema: Tree, params: Tree, average: EMA, updates: Step) -> Tree:
    # 1 - d, not d: rounding 0.9999 to float32 changes 1 - d by a five-thousandth.
    share = EMA_WARMUPS[average.warmup](jnp.asarray(updates, jnp.float32))
    rate = jnp.maximum(1 - average.decay, share)
    return jax.tree.map(lambda old, new: old + rate.astype(old.dtype) * (new - old), ema, params)


def average_params(average: Tree, params: Tree, opt_state: Any, ema: EMA, step: Step) -> Tree:
    """Returns the averaged parameters after a step.

    Args:
      average: those before the step.
      params: the parameters after the step.
      opt_state: the state of the optimizer after the step. If it is that of a schedule-free
        optimizer, the average is its own.
      ema: see `ema_update`; without a decay, the average does not change.
      step: number of updates of the parameters before this one.
    """
    if isinstance(opt_state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(opt_state, params)
    return ema_update(average, params, ema, step) if ema.decay else average


def evaluated_weights(config: ConfigDict) -> str:
    """Returns which weights a run evaluates: "ema", "schedule_free" or "params"."""
    if is_schedule_free(config.optimizer):
        return "schedule_free"
    return "ema" if config.ema_decay else "params"
