"""Keys of optimizer and schedule that have no effect on what the others choose, as a table."""

import inspect
from collections.abc import Callable
from typing import Any

from resflax.train.optimizers import OPTIMIZERS, users_of
from resflax.train.rule import Row
from resflax.train.schedules import SCHEDULES


def _takes(function: Callable[..., Any], parameter: str) -> bool:
    """Returns whether a function of a table names a parameter, and does not only ignore it."""
    return parameter in inspect.signature(function).parameters


def _optimizer_row(key: str, parameter: str) -> Row:
    users = users_of(parameter)
    return Row(
        (key,),
        lambda c: c.optimizer in OPTIMIZERS and c.optimizer not in users,
        f"config.optimizer={{c.optimizer!r}} has none: leave it out, or use {' or '.join(users)}",
    )


def _schedule_row(key: str, parameter: str) -> Row:
    users = [name for name, row in SCHEDULES.items() if _takes(row.make, parameter)]
    return Row(
        (key,),
        lambda c: c.schedule in SCHEDULES and c.schedule not in users,
        f"config.schedule={{c.schedule!r}} has none: leave it out, or use {' or '.join(users)}",
    )


OPTIMIZER_ROWS: tuple[Row, ...] = (
    # Optimizer.
    _optimizer_row("momentum", "momentum"),
    _optimizer_row("nesterov", "nesterov"),
    _optimizer_row("trust_coefficient", "trust_coefficient"),
    _optimizer_row("betas", "betas"),
    _optimizer_row("eps", "eps"),
    Row(("nesterov",), lambda c: not c.momentum, "config.momentum is 0: leave one of them out"),
    Row(
        ("grad_clip_mode",),
        lambda c: not c.grad_clip,
        "config.grad_clip is 0: leave it out, or give the limit",
    ),
    Row(
        ("decay_mask",),
        lambda c: (
            c.optimizer not in ("lars", "lamb")  # whose trust ratios use it
            and not c.weight_decay
            and not any(c.ensemble.weight_decay)
        ),
        "config.weight_decay is 0: leave it out",
    ),
    Row(
        ("weight_decay_factors",),
        lambda c: not c.weight_decay and not any(c.ensemble.weight_decay),
        "config.weight_decay is 0: leave it out",
    ),
    Row(
        ("max_consecutive_nonfinite",),
        lambda c: c.on_nonfinite != "skip",
        "config.on_nonfinite={c.on_nonfinite!r} skips no update: leave it out, or use skip",
    ),
    Row(
        ("base_batch_size",),
        lambda c: c.learning_rate_scaling == "none",
        "config.learning_rate_scaling is 'none': leave it out, or use linear or sqrt",
    ),
    Row(
        ("ema_every_steps", "ema_start_step", "ema_warmup"),
        lambda c: not c.ema_decay,
        "config.ema_decay is 0: leave it out, or give the decay",
    ),
    # Schedule.
    _schedule_row("decay_epochs", "boundaries"),
    _schedule_row("decay_rate", "decay_rate"),
    Row(
        ("plateau_patience", "plateau_threshold"),
        lambda c: c.schedule in SCHEDULES and c.schedule != "plateau",
        "config.schedule={c.schedule!r} has none: leave it out, or use plateau",
    ),
    _schedule_row("polynomial_power", "power"),
    _schedule_row("schedule_cycles", "cycles"),
    Row(
        ("decay_rate",),
        lambda c: c.schedule == "step" and not c.decay_epochs,
        "config.decay_epochs is (): leave it out, or give the epochs",
    ),
    _schedule_row("min_learning_rate", "minimum"),
    Row(
        ("warmup_learning_rate",),
        lambda c: (
            not c.warmup_epochs or (c.schedule in SCHEDULES and SCHEDULES[c.schedule].has_warmup)
        ),
        "config.schedule={c.schedule!r} with config.warmup_epochs={c.warmup_epochs} has no linear"
        " warm-up: leave it out",
    ),
)
