"""Combinations of keys of optimizer and schedule that are refused, each in one line."""

import pytest

from resflax import UserError
from resflax.train import check_config, default_config
from resflax.train.optimizer_rules import COMBINATIONS

SCHEDULE_FREE = {
    "optimizer": "schedule_free_sgd", "nesterov": True, "schedule": "constant",
    "precise_bn_batches": 1,
}  # fmt: skip
ADAMW = {**SCHEDULE_FREE, "optimizer": "schedule_free_adamw"}
RATES = {"warmup_epochs": 1.0, "learning_rate_scaling": "linear", "batch_size": 64}
# An invalid combination for each row of `COMBINATIONS`, in order, its message, and a valid one.
COMBINED = [
    ({**SCHEDULE_FREE, "schedule": "cosine"}, "config.schedule is 'cosine', but", SCHEDULE_FREE),
    (
        {"schedule": "plateau", "decay_rate": 1.0},
        "config.decay_rate is 1.0 with config.schedule='plateau'",
        {"schedule": "plateau", "decay_rate": 0.99},
    ),
    ({**SCHEDULE_FREE, "ema_decay": 0.9}, "config.ema_decay is 0.9, but", SCHEDULE_FREE),
    (
        {**SCHEDULE_FREE, "momentum": 0.0},
        "config.momentum is 0.0 with",
        {**SCHEDULE_FREE, "momentum": 0.5},
    ),
    ({**ADAMW, "betas": (0.0, 0.9)}, "config.betas is .0.0, 0.9. with", ADAMW),
    (
        {**RATES, "min_learning_rate": 0.026},
        "config.min_learning_rate is 0.026: expected at most",
        {**RATES, "min_learning_rate": 0.025},
    ),
    (
        {**RATES, "warmup_learning_rate": 0.026},
        "config.warmup_learning_rate is 0.026: expected at most",
        {**RATES, "warmup_learning_rate": 0.025},
    ),
]


def make_config(keys):
    config = default_config()
    config.update_from_flattened_dict(keys)
    return config


@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_invalid_combination_is_one_line(number):
    assert len(COMBINED) == len(COMBINATIONS)
    invalid, message, valid = COMBINED[number]
    is_invalid = [bool(row[0](make_config(invalid))) for row in COMBINATIONS]
    assert is_invalid == [n == number for n in range(len(COMBINATIONS))]
    with pytest.raises(UserError, match=f"^{message}") as e:
        check_config(make_config(invalid))
    assert "\n" not in str(e.value)
    check_config(make_config(valid))


def test_betas_of_another_number_are_one_line():
    with pytest.raises(UserError, match=r"^config.betas is \(0.9,\), but adamw has 2: expected"):
        check_config(make_config({"optimizer": "adamw", "betas": (0.9,)}))


def test_schedule_free_optimizer_needs_statistics_of_its_average():
    with pytest.raises(UserError, match="config.optimizer is schedule_free_sgd: averaged weights"):
        check_config(make_config({**SCHEDULE_FREE, "precise_bn_batches": 0}))
