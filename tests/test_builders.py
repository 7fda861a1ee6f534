"""`build`: the parts of a run, and the configs it rejects."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from helpers.modules import NormNet

from resflax import UserError, create_model
from resflax.data import (
    Dataset,
    InMemorySplit,
    load_dataset,
    make_augment,
    normalize,
    train_batches,
)
from resflax.train import (
    Trainer,
    build,
    create_state,
    default_config,
    make_optimizer,
    make_schedule,
    make_train_step,
    params_sha256,
)
from resflax.train.builders import build_schedule, total_steps
from resflax.train.config import to_json_dict

DIGITS = load_dataset("digits")
TINY = {"depths": (1,), "widths": (4,), "stem_width": 4}
STEPS = 4
FOUR_STAGES = {
    "model": "resnet18",
    "spec__depths": (1,) * 4,
    "spec__widths": (4,) * 4,
}


def make_config(**keys):
    config = default_config()
    config.model, config.epochs, config.batch_size = "cifar_resnet8", 2, 64
    config.spec.update(TINY)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return config


def train_by_hand():
    """Trains the config of the test below without the builders, with the pure step in a loop."""
    model = create_model("cifar_resnet8", num_classes=10, **TINY)
    schedule = make_schedule("cosine", peak=0.05, steps=45, warmup_steps=22)
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.01, grad_clip=1.0)
    mean, std = DIGITS.train.mean_std()
    step = make_train_step(
        model,
        optimizer,
        augment=make_augment(pad_crop=1),
        normalize=partial(normalize, mean=mean, std=std),
        label_smoothing=0.1,
        grad_accum_steps=2,
        on_nonfinite="stop",
    )
    state, step = create_state(model, optimizer, 3, (8, 8, 1)), jax.jit(step)
    for batch in train_batches(DIGITS.train, seed=3, batch_size=64, start=0, stop=STEPS):
        state, metrics = step(state, batch)
    return params_sha256(state.params), float(metrics["loss"])


@pytest.mark.slow
def test_built_run_equals_the_pure_step_in_a_loop(monkeypatch):
    """Bit-identical, on one device; the run gathers its batches from a dataset on the device."""
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]])
    config = make_config(
        seed=3, optimizer="adamw", learning_rate=0.05, warmup_epochs=1.0, weight_decay=0.01,
        grad_clip=1.0, label_smoothing=0.1, grad_accum_steps=2, parallel="mesh",
        data__pad_crop=1,
    )  # fmt: skip
    trainer = Trainer(build(config))
    assert len(trainer.engine.devices) == 1
    assert trainer.on_device
    step_fn = trainer.make_step_fn(0)
    state = trainer.engine.put_state(trainer.init())
    for _ in range(STEPS):
        state, metrics = step_fn(state)
    state, metrics = trainer.engine.to_host((state, metrics))
    assert (params_sha256(state.params), float(metrics["loss"])) == train_by_hand()


@pytest.mark.slow
def test_built_run_has_the_parts_of_its_config():
    config = make_config(parallel="mesh", mesh__fsdp=2)
    run = build(config)
    assert run.dataset.name == "digits"
    assert run.model.spec.num_classes == 10
    assert run.model.spec.widths == (4,)
    assert run.pretrained is None
    assert run.notes == ()
    assert run.steps == 45  # ceil(2 * 1437 / 64)
    assert run.engine.name == "mesh"
    assert run.engine.axis_name is None
    assert float(run.schedules[0](0)) == pytest.approx(0.1)
    assert to_json_dict(run.config) == to_json_dict(config)
    assert run.config is not config
    run.config.epochs = 7
    run.config.data.mean = (0.5,)
    assert (config.epochs, config.data.mean) == (2, ())


def test_tag_of_a_model_without_pretrained_weights_is_said():
    """timm's tags name weights, which only `config.pretrained` reads."""
    run = build(make_config(model="cifar_resnet8.a1"), dataset=DIGITS)
    assert run.notes == (
        "initial parameters are random: those of .a1 are --config.pretrained=cifar_resnet8.a1",
    )
    assert build(make_config(), dataset=DIGITS).notes == ()


def test_given_model_and_dataset_replace_those_of_the_config():
    images = np.zeros((64, 2, 2, 1), np.uint8)
    split = InMemorySplit(images, np.arange(64, dtype=np.int32) % 10)
    dataset = Dataset("zeros", split, split, tuple("0123456789"))
    run = build(make_config(model="resnet50", spec__stem="cifar"), dataset=DIGITS, model=NormNet())
    assert isinstance(run.model, NormNet)
    assert run.dataset.train.images is DIGITS.train.images
    assert run.init().params["head"]["kernel"].shape == (6, 10)
    run = build(make_config(), dataset=dataset, model=NormNet())
    assert run.init().params["stem_conv"]["kernel"].shape == (4, 6)
    assert run.steps == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochs": 0}, "config.epochs is 0, which only evaluates: expected config.pretrained"),
        ({"batch_size": 1440}, "larger than the train split of 'digits', 1437 examples: use 1437"),
        ({"batch_size": 60}, "batch_size 60 is not a multiple of the 8 devices: use 56 or 64"),
        ({"grad_accum_steps": 3}, "8 devices times grad_accum_steps 3: use 48 or 72"),
        ({"batch_size": 8, "data__mixup": 0.2}, "8 is not a multiple of twice the 8 devices"),
        ({"data__pad_crop": 9}, "data.pad_crop is 9: expected at most the image's side, 8"),
        ({"epochs": 2**31 - 1, "batch_size": 8}, "more than 2\\*\\*31 - 1: lower config.epochs"),
        (FOUR_STAGES, "the images of digits are 8x8, too small for resnet18.*needs 17x17"),
        (
            {"parallel": "mesh", "mesh__fsdp": 3},
            "fsdp is 3: expected a divisor of the number of devices, 8",
        ),
        ({"dataset": "digitss"}, "unknown dataset 'digitss'"),
        ({"pretrained": "/nowhere.safetensors"}, "/nowhere.safetensors"),
    ],
)
def test_configs_that_do_not_fit_raise_user_errors(keys, message):
    with pytest.raises(UserError, match=message) as e:
        build(make_config(**keys))
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_model_that_cannot_take_the_images_raises_user_error():
    config = make_config(spec__depths=(1, 1), spec__widths=(8, 4), spec__stem_width=8)
    with pytest.raises(
        UserError, match="cifar_resnet8 cannot be built for images of \\(8, 8, 1\\)"
    ):
        build(config)


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(1, 10, 10), (2, 64, 4), (3, 7, 43)])
def test_total_steps_use_every_example_in_each_epoch(epochs, batch_size, steps):
    assert total_steps(make_config(epochs=epochs, batch_size=batch_size), 100) == steps


def test_schedule_counts_epochs_of_the_split():
    config = make_config(
        schedule="step", decay_epochs=(1, 2), epochs=3, batch_size=10, decay_rate=0.5,
        learning_rate=1.0,
    )  # fmt: skip
    schedule = build_schedule(config, 40)
    rates = [float(schedule(step)) for step in range(12)]
    np.testing.assert_allclose(rates, [1.0] * 4 + [0.5] * 4 + [0.25] * 4)


def test_run_is_immutable():
    run = build(make_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.steps = 3
