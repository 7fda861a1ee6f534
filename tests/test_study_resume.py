"""Stopped studies resume inside the network that was training, with the same bits."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from resflax.data import Dataset, InMemorySplit
from resflax.nn.batch_norm import BatchNorm
from resflax.progress import ProgressMeter
from resflax.run.progress import RunProgress
from resflax.study import sweep
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import JSON, MSGPACK, StudyDir
from resflax.study.sweep import train_networks, train_sweep

EPOCHS = (3, 5, 8)  # steps at which an epoch ends: 2.5 batches of 16 of 40 examples each


class Tiny(nn.Module):
    """Network with parameters and batch statistics that compiles quickly."""

    axis_name: str | None = None
    scale: float = 1.0  # of the logits
    spec = SimpleNamespace(depths=(1,))

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        x = BatchNorm(train=train, axis_name=self.axis_name)(x)
        return nn.Dense(2)(nn.relu(x)) * self.scale


@pytest.fixture(autouse=True)
def save_after_every_epoch(monkeypatch):
    monkeypatch.setattr(sweep, "CHECKPOINT_SECONDS", 1e-6)


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    split = InMemorySplit(images, (np.arange(40) % 2).astype(np.int32))
    return Dataset("noise", split, split, ("0", "1"))


def make_config():
    config = make_recipe("digits", epochs=3, batch_size=16)
    config.data.pad_crop = 1  # so that the step draws random numbers
    return config


class StoppingProgress(RunProgress):
    """Interrupts at the training record of an epoch; counts the epochs that it has seen."""

    def __init__(self, stop):
        super().__init__(EPOCHS[-1], silent=True)
        self.stop, self.epochs, self.resumed = stop, 0, 0

    def resume(self, step):
        self.resumed = step

    def train(self, record, remaining, *, evaluates=False):
        self.epochs += 1
        if record["step"] == self.stop:
            raise KeyboardInterrupt


def train(noise, workdir=None, *, stop=0, seeds=(3, 5)):
    """Trains, interrupted at a step; returns states, curves and the progress."""
    progress = StoppingProgress(stop)
    states, curves = train_sweep(
        Tiny(),
        noise,
        make_config(),
        seeds=seeds,
        rates=[0.05, 1e30],
        workdir=workdir,
        progress=progress,
    )
    return states, curves, progress


@pytest.mark.slow
def test_sweep_stopped_twice_ends_with_the_same_bits(noise, tmp_path):
    uninterrupted = train(noise)
    for stop in (5, 8):  # after the checkpoints at steps 3 and 5
        with pytest.raises(KeyboardInterrupt):
            train(noise, tmp_path / "a", stop=stop)
    resumed = train(noise, tmp_path / "a")
    assert (resumed[2].resumed, resumed[2].epochs) == (5, 1)
    assert resumed[1] == uninterrupted[1]
    for a, b in zip(*map(jax.tree.leaves, (resumed[0], uninterrupted[0])), strict=True):
        assert a.tobytes() == b.tobytes()
    finished = train(noise, tmp_path / "a")
    assert (finished[1], finished[2].resumed, finished[2].epochs) == (resumed[1], 8, 0)


@pytest.mark.parametrize("ended", [False, True])
def test_diverged_members_have_an_error_of_100_percent(ended):
    """Also in the epochs after the end of a run whose other member diverged later."""
    records = []
    for step in EPOCHS[: 2 if ended else 3]:
        for split, accuracies in (("train", [0.5, 0.25]), ("test", [0.75, 0.5])):
            members = {"loss": [0.125, None], "accuracy": accuracies}
            records.append({"step": step, "split": split, "members": members})
    diverged_at = [7 if ended else 0, 4]
    train_error, test_error, loss = sweep._curves(records, EPOCHS, diverged_at)
    last = 100 if ended else 50
    np.testing.assert_array_equal(train_error, [[50, 50, last], [75, 100, 100]])
    np.testing.assert_array_equal(test_error, [[25, 25, 100 if ended else 25], [50, 100, 100]])
    last = sweep.DIVERGED_LOSS if ended else 0.125
    np.testing.assert_array_equal(loss[:, 1:], [[0.125, last], [sweep.DIVERGED_LOSS] * 2])


@pytest.mark.parametrize("seeds", [1, 2])
def test_network_without_finite_losses_has_errors_of_100_percent(seeds, noise, tmp_path):
    models = {"bad": Tiny(scale=np.inf), "good": Tiny()}
    with StudyDir.open(tmp_path, {}) as study:
        train = partial(
            train_networks, study, models, noise, make_config(), seeds=seeds, rates=[0.05]
        )
        curves = train()
        assert train() == curves  # read from the study's directory
    assert list(curves) == ["bad", "good"]
    assert np.shape(curves["bad"]["loss"]) == (1, seeds, 3)
    for split in ("train", "test"):
        assert np.min(curves["bad"][split]) == 100
        assert np.max(curves["good"][split]) < 100
    assert np.isfinite(curves["bad"]["loss"]).all()


def test_failed_save_is_one_error_about_out(noise, tmp_path, monkeypatch):
    def fail(self, *args, **fields):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(ValueError, match="cannot be written: No space.*choose another --out"):
        train(noise, tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "rates", "extract"),
    [
        (JSON, [0.05, 1e30], lambda states, curves: curves),
        (MSGPACK, [0.05], lambda states, curves: jax.device_get(states.variables)),
    ],
    ids=["json", "msgpack"],
)
def test_study_resumes_inside_a_network(noise, tmp_path, monkeypatch, codec, rates, extract):
    update, skip = ProgressMeter.update, ProgressMeter.skip
    done = {"update": 0, "skip": 0, "stop": 8 + 5}

    def count_update(self, amount, text):
        done["update"] += amount
        update(self, amount, text)
        if done["update"] == 4 * done["stop"]:  # a step of Tiny costs 4
            raise KeyboardInterrupt

    def count_skip(self, amount):
        done["skip"] += amount
        skip(self, amount)

    monkeypatch.setattr(ProgressMeter, "update", count_update)
    monkeypatch.setattr(ProgressMeter, "skip", count_skip)

    def run_study(path):
        with StudyDir.open(path, {}) as study:
            return train_networks(
                study,
                {"one": Tiny(), "two": Tiny()},
                noise,
                make_config(),
                seeds=1,
                rates=rates,
                extract=extract,
                codec=codec,
            )

    def part_names():
        return sorted(path.name for path in (tmp_path / "a" / "parts").iterdir())

    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path / "a")
    assert part_names() == [f"one.{codec.suffix}", "two.run"]
    done |= {"update": 0, "skip": 0, "stop": -1}
    resumed = run_study(tmp_path / "a")
    assert done == {"update": 4 * (8 - 3), "skip": 4 * (8 + 3), "stop": -1}
    assert part_names() == [f"one.{codec.suffix}", f"two.{codec.suffix}"]
    expected = run_study(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
