"""Rules over several keys of optimizer and schedule."""

from ml_collections import ConfigDict

from resflax.errors import UserError
from resflax.train.learning_rate import lowest_peak
from resflax.train.optim import check_betas
from resflax.train.optimizers import is_schedule_free
from resflax.train.rule import Combination, check_combinations

# The invalid combination, and its message.
COMBINATIONS: tuple[Combination, ...] = (
    (
        lambda c: is_schedule_free(c.optimizer) and c.schedule != "constant",
        "config.schedule is {c.schedule!r}, but config.optimizer={c.optimizer!r} replaces the"
        " schedule by an average: expected constant",
    ),
    (
        lambda c: c.schedule == "plateau" and c.decay_rate >= 1,
        "config.decay_rate is {c.decay_rate} with config.schedule='plateau': expected less than 1",
    ),
    (
        lambda c: is_schedule_free(c.optimizer) and c.ema_decay > 0,
        "config.ema_decay is {c.ema_decay}, but config.optimizer={c.optimizer!r} averages the"
        " weights itself: expected 0",
    ),
    (
        lambda c: c.optimizer == "schedule_free_sgd" and not c.momentum,
        "config.momentum is 0.0 with config.optimizer={c.optimizer!r}: expected more than 0",
    ),
    (
        lambda c: c.optimizer == "schedule_free_adamw" and 0 in c.betas[:1],
        "config.betas is {c.betas} with config.optimizer={c.optimizer!r}: expected a first one of"
        " more than 0",
    ),
    (
        lambda c: lowest_peak(c) < c.min_learning_rate,
        "config.min_learning_rate is {c.min_learning_rate}: expected at most the largest learning"
        " rate of the schedule, learning_rate after learning_rate_scaling",
    ),
    (
        lambda c: lowest_peak(c) < c.warmup_learning_rate,
        "config.warmup_learning_rate is {c.warmup_learning_rate}: expected at most the largest"
        " learning rate of the schedule, learning_rate after learning_rate_scaling",
    ),
)


def check_optimizer(config: ConfigDict) -> None:
    """Raises `UserError` if keys of optimizer and schedule do not fit each other.

    Args:
      config: whose values are valid alone.
    """
    try:
        check_betas(config.optimizer, config.betas)
    except UserError as e:
        raise UserError(f"config.{e}") from e
    check_combinations(COMBINATIONS, config)
