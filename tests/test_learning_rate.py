"""Learning rates scaled by the batch size, against the rules of timm's training script."""

import numpy as np
import pytest

from resflax.train import build, check_config, default_config
from resflax.train.builders import build_schedule, build_schedules
from resflax.train.learning_rate import SCALINGS, describe_learning_rate


def make_config(**keys):
    config = default_config()
    config.model, config.schedule = "cifar_resnet8", "constant"
    config.update_from_flattened_dict(keys)
    return config


@pytest.mark.parametrize(("scaling", "power"), [("none", 0.0), ("linear", 1.0), ("sqrt", 0.5)])
def test_rate_is_scaled_as_in_timms_train_script(scaling, power):
    """`lr = lr_base * (batch_size / lr_base_size) ** power`."""
    keys = {"base_batch_size": 512} if power else {}
    config = make_config(learning_rate=0.3, learning_rate_scaling=scaling, batch_size=128, **keys)
    check_config(config)
    assert build_schedule(config, 1000)(0) == pytest.approx(0.3 * (128 / 512) ** power)


def test_scalings_are_those_of_the_config_help():
    assert {name: scale(9.0) for name, scale in SCALINGS.items()} == {
        "none": 1.0, "linear": 9.0, "sqrt": 3.0
    }  # fmt: skip


def test_rates_of_all_members_are_scaled():
    keys = {"ensemble.size": 2, "ensemble.learning_rate": (0.1, 0.3)}
    config = make_config(learning_rate_scaling="linear", batch_size=512, **keys)
    rates = [float(schedule(0)) for schedule in build_schedules(config, 1000)]
    np.testing.assert_allclose(rates, [0.2, 0.6], rtol=1e-6)
    (line,) = describe_learning_rate(config)
    assert line.startswith("learning rate: 0.2, 0.6, from 0.1, 0.3 for 256 examples")


def test_resulting_rate_is_a_note_of_the_run():
    line = "learning rate: 0.025, from 0.1 for 256 examples, by linear scaling to 64"
    assert line in build(make_config(learning_rate_scaling="linear", batch_size=64)).notes
    assert not any("learning rate" in note for note in build(make_config()).notes)
