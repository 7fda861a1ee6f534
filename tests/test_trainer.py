"""The trainer's steps and evaluation."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.modules import NormNet

from resflax.data import load_dataset, normalize, train_batches
from resflax.train import Trainer, build, default_config, make_eval_step, recompute_batch_stats
from resflax.train.freeze import count_params
from resflax.train.trainer import describe_size
from resflax.zoo.cost import format_count

DIGITS = load_dataset("digits")


def make_trainer(**keys):
    config = default_config()
    config.epochs, config.batch_size = 2, 48
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return Trainer(build(config, model=NormNet(), dataset=DIGITS))


def to_input(images):
    mean, std = DIGITS.train.mean_std()
    return normalize(images, mean=mean, std=std)


@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
@pytest.mark.parametrize("placement", ["host", "device"])
def test_evaluation_counts_every_example_once(parallel, placement):
    """48 does not divide the 360 test examples; the second evaluation uses cached batches."""
    trainer = make_trainer(parallel=parallel, data__placement=placement)
    assert trainer.on_device == (placement == "device")
    state = trainer.init()
    batch = {
        "image": DIGITS.test.images,
        "label": DIGITS.test.labels,
        "weight": np.ones(360, np.float32),
    }
    sums = make_eval_step(NormNet(), normalize=to_input)(state, batch)
    on_devices = trainer.engine.put_state(state)
    first, second = (trainer.evaluate(on_devices, DIGITS.test) for _ in range(2))
    assert first == second
    assert first["count"] == 360
    assert first["accuracy"] == float(sums["correct"]) / 360
    assert first["loss"] == pytest.approx(float(sums["loss"]) / 360, rel=1e-5)


@pytest.mark.parametrize("placement", ["host", "device"])
def test_evaluation_calls_before_batch_and_can_be_stopped(placement):
    class StopError(Exception):
        pass

    trainer = make_trainer(data__placement=placement)
    state = trainer.engine.put_state(trainer.init())
    eval_step, events = trainer._evaluator._step, []

    def spy(state, batch):
        events.append("batch")
        return eval_step(state, batch)

    trainer._evaluator._step = spy
    trainer.evaluate(state, DIGITS.test, lambda: events.append("callback"))
    assert events == ["callback", "batch"] * 8  # ceil(360 / 48)
    events.clear()

    def stop_before_third():
        events.append("callback")
        if events.count("callback") == 3:
            raise StopError

    with pytest.raises(StopError):
        trainer.evaluate(state, DIGITS.test, stop_before_third)
    assert events == ["callback", "batch"] * 2 + ["callback"]


@pytest.mark.slow
def test_eval_state_recomputes_batch_statistics():
    """Uses the first two batches without augmentation; the given state is not changed."""
    trainer = make_trainer(precise_bn_batches=2, data__pad_crop=1)
    initial = trainer.init()
    state = trainer.engine.put_state(initial)
    result = trainer.engine.to_host(trainer.eval_state(state))
    batches = train_batches(DIGITS.train, seed=0, batch_size=48, start=0, stop=2)
    images = [to_input(batch["image"]) for batch in batches]
    expected = recompute_batch_stats(NormNet(), initial.eval_variables, images)["batch_stats"]
    for a, b in zip(*map(jax.tree.leaves, (result.batch_stats, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        np.testing.assert_array_equal, trainer.engine.to_host(state), jax.device_get(initial)
    )
    plain = dataclasses.replace(result, batch_stats=initial.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, plain, jax.device_get(initial))


def test_eval_state_without_precise_bn_is_the_state():
    trainer = make_trainer()
    state = trainer.engine.put_state(trainer.init())
    assert trainer.eval_state(state) is state


def test_eval_steps_end_every_nth_epoch_and_the_run():
    trainer = make_trainer(epochs=5, eval_every_epochs=2)
    assert trainer.steps == 150  # ceil(5 * 1437 / 48)
    steps = [step for step in range(1, 151) if trainer.is_eval_step(step)]
    assert steps == [60, 120, 150]
    assert trainer.epoch(30) == pytest.approx(30 * 48 / 1437)


def test_summary_names_model_dataset_and_devices():
    assert make_trainer(model="resnet50").summary() == (
        "resnet50 on digits: 1437 examples, 2 epochs, 60 steps of 48 on 8 cpu devices;"
        " 472 parameters; compiling"
    )


def test_describe_size_counts_parameters_and_multiply_adds():
    """CIFAR ResNet-8 on gray 8x8 images: layers of the paper, counted by hand."""
    config = default_config()
    config.model, config.freeze = "cifar_resnet8", "stem*"
    run = build(config, dataset=DIGITS)
    multiply_adds = 9 * (8 * 8 * (16 + 2 * 16 * 16) + 4 * 4 * (16 * 32 + 32 * 32))
    multiply_adds += 9 * 2 * 2 * (32 * 64 + 64 * 64) + 640
    text = f"{count_params(run.abstract_state().params) / 1e3:.3g} k parameters"
    assert describe_size(run).startswith(text)
    assert f" of them trained, {multiply_adds / 1e3:.3g} k multiply-adds" in describe_size(run)
    config.freeze, config.ensemble.size = None, 3
    assert describe_size(build(config, dataset=DIGITS)).startswith(f"each {text}, ")


def test_format_count_has_three_digits():
    counts = (0, 999, 1000, 9996, 99_950, 999_499, 999_501, 123_456_789_012)
    texts = ["0", "999", "1 k", "10 k", "100 k", "999 k", "1 M", "123 G"]
    assert [format_count(count) for count in counts] == texts
