import pytest
from ml_collections import ConfigDict

from resflax import UserError
from resflax.train import check_config, default_config
from resflax.train.config import flat_keys, spec_overrides


def test_the_defaults_are_right():
    check_config(default_config())


def test_names_that_other_tools_count_on():
    keys = {"model", "dataset", "seed", "epochs", "batch_size", "learning_rate", "parallel"}
    assert keys <= set(flat_keys(default_config()))
    assert default_config().parallel == "pmap"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epochs", 0, "config.epochs is 0: expected from 1 to"),
        ("seed", -1, "config.seed is -1: expected from 0 to"),
        ("seed", 2**32, "expected from 0 to"),
        ("batch_size", -8, "config.batch_size is -8"),
        ("learning_rate", 0.0, "config.learning_rate is 0.0"),
        ("learning_rate", float("nan"), "config.learning_rate is nan"),
        ("learning_rate", float("inf"), "config.learning_rate is inf"),
        ("momentum", 1.0, "from 0 to less than 1"),
        ("label_smoothing", 1.0, "from 0 to less than 1"),
        ("grad_accum_steps", 0, "config.grad_accum_steps is 0: expected from 1 to"),
        ("polynomial_power", 0.0, "config.polynomial_power is 0.0: expected more than 0"),
        ("trust_coefficient", -1.0, "config.trust_coefficient is -1.0: expected more than 0"),
        ("ema_decay", 1.0, "config.ema_decay is 1.0: expected from 0 to less than 1"),
        ("precise_bn_batches", -1, "config.precise_bn_batches is -1: expected from 0 to"),
        ("decay_epochs", (3, 2), "rising epochs"),
        ("decay_epochs", ("a",), "rising epochs"),
        ("warmup_epochs", 11.0, "at most epochs, 10"),
        ("eval_every_epochs", 0, "config.eval_every_epochs is 0"),
    ],
)
def test_a_value_out_of_range_is_refused(key, value, message):
    config = default_config()
    config[key] = value
    with pytest.raises(UserError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochss": 3}, "unknown config key 'epochss': did you mean epochs"),
        (
            {"data": {"data_dirr": ""}},
            "unknown config key 'data.data_dirr': did you mean data.data_dir",
        ),
        ({"epochs": "3"}, "config.epochs is '3': expected int"),
        ({"epochs": True}, "config.epochs is True: expected int"),
        ({"model": 3}, "config.model is 3: expected str"),
        ({"data": 3}, "unknown config key 'data'"),
    ],
)
def test_a_recipe_with_a_key_or_type_of_its_own_is_refused(change, message):
    values = default_config().to_dict()
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message):
        check_config(ConfigDict(values))


def test_a_missing_key_is_named():
    values = default_config().to_dict()
    del values["seed"]
    with pytest.raises(UserError, match="config.seed is missing"):
        check_config(ConfigDict(values))


def test_only_fields_that_are_set_override_the_spec():
    config = default_config()
    assert spec_overrides(config) == {}
    config.spec.shortcut = "C"
    config.spec.zero_init = False
    config.spec.depths = (1, 2, 3)
    assert spec_overrides(config) == {"shortcut": "C", "zero_init": False, "depths": (1, 2, 3)}
