"""Stopped studies resume inside the network that was training, with the same bits."""

import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from resflax.data import Dataset, InMemorySplit
from resflax.nn.batch_norm import BatchNorm
from resflax.progress import ProgressMeter
from resflax.study import sweep
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import JSON, MSGPACK, StudyDir
from resflax.study.sweep import train_networks, train_sweep

STEPS = 8  # 2.5 per epoch: the batches of an epoch come from several processes


class Tiny(nn.Module):
    """Network with parameters and batch statistics that compiles quickly."""

    spec = SimpleNamespace(depths=(1,))

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dense(2)(nn.relu(BatchNorm(train=train)(x)))


@pytest.fixture(autouse=True)
def save_after_every_step(monkeypatch):
    monkeypatch.setattr(sweep, "SNAPSHOT_SECONDS", 0.0)


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


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """Shares the compiled steps between the trainings of this file, to save time."""
    optimizer, compile_steps = sweep._make_optimizer(make_config(), 40), sweep._compile_steps
    cache = {}

    def cached(model, *others):
        if model not in cache:
            cache[model] = compile_steps(model, *others)
        return cache[model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_make_optimizer", lambda config, examples: optimizer)
        patch.setattr(sweep, "_compile_steps", cached)
        yield


def train(noise, checkpoints=None, *, stop=0):
    """Trains, interrupted after `stop` steps; returns states, curves, number of steps taken."""
    texts, skipped = [], []

    def on_step(text):
        texts.append(text)
        if len(texts) == stop:
            raise KeyboardInterrupt

    states, curves = train_sweep(
        Tiny(),
        noise,
        make_config(),
        seeds=[3, 5],
        rates=[0.05, 1e30],
        checkpoints=checkpoints,
        on_step=on_step,
        on_resume=skipped.append,
    )
    assert len(texts) + sum(skipped) == STEPS
    return states, curves, len(texts)


@pytest.fixture(scope="module")
def uninterrupted(noise):
    return train(noise)


def assert_same(actual, expected):
    assert actual[1] == expected[1]
    for a, b in zip(jax.tree.leaves(actual[0]), jax.tree.leaves(expected[0]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_sweep_stopped_twice_ends_with_the_same_bits(noise, uninterrupted, tmp_path):
    for stop in (1, 3):  # after steps 1 and 4, both inside an epoch
        with pytest.raises(KeyboardInterrupt):
            train(noise, tmp_path / "a", stop=stop)
    resumed = train(noise, tmp_path / "a")
    assert resumed[2] == STEPS - 4
    assert_same(resumed, uninterrupted)


def corrupt(step):
    """Flips a bit of a checkpoint's largest file."""
    file = max((path for path in step.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_corrupt_snapshots_are_skipped(noise, uninterrupted, tmp_path, capsys, count):
    folder = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train(noise, folder, stop=3)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    for step in ("3", "2")[:count]:
        corrupt(folder / step)
    capsys.readouterr()
    resumed = train(noise, folder)
    assert resumed[2] == (STEPS - 2 if count == 1 else STEPS)
    assert_same(resumed, uninterrupted)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == count
    for line, step in zip(lines, (3, 2), strict=False):
        assert line.startswith(f"warning: the checkpoint at step {step} was skipped: ")
        assert str(tmp_path / "damaged") in line


def test_truncated_snapshot_starts_at_step_0(noise, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train(noise, folder, stop=1)
    manifest = folder / "1" / "checksums.json"
    manifest.write_bytes(manifest.read_bytes()[:20])
    capsys.readouterr()
    restarted = train(noise, folder)
    assert restarted[2] == STEPS
    assert_same(restarted, uninterrupted)
    assert capsys.readouterr().err.count("\n") == 1


def test_snapshot_of_another_network_is_deleted(noise, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train(noise, folder, stop=2)
    other = jax.tree.map(lambda leaf: leaf[..., None], uninterrupted[0])
    snapshots = sweep._Snapshots(folder)
    restored = snapshots.restore(other)
    assert restored.states is other
    assert (restored.history, restored.window) == ([], [])
    snapshots.close()
    assert not any(folder.iterdir())
    error = capsys.readouterr().err
    assert error.startswith(f"warning: the snapshot in {folder} was deleted: ")
    assert "belongs to another network" in error
    assert re.search(r"mean is float32\[4, (\d)\], expected float32\[4, \1, 1\]", error)
    assert error.count("\n") == 1


def test_snapshot_restores_history_and_window_exactly(noise, uninterrupted, tmp_path):
    state = uninterrupted[0]
    rng = np.random.default_rng(0)
    window = [{key: rng.random(4, np.float32) for key in sweep.METRICS} for _ in range(2)]
    window[0]["loss"][1] = np.inf
    history = [rng.random((3, 4), np.float32).tolist() for _ in range(3)]
    snapshots = sweep._Snapshots(tmp_path / "a")
    snapshots.save_if_due(sweep.SweepState(state, history, window))
    snapshots.close()
    snapshots = sweep._Snapshots(tmp_path / "a")
    restored = snapshots.restore(state)
    snapshots.close()
    assert restored.history == history
    for actual, expected in zip(restored.window, window, strict=True):
        for key in sweep.METRICS:
            assert actual[key].dtype == np.float32
            np.testing.assert_array_equal(actual[key], expected[key])


def test_snapshots_are_not_saved_after_every_step(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "SNAPSHOT_SECONDS", 3600.0)
    train(noise, tmp_path / "a")
    assert not any((tmp_path / "a").iterdir())


def test_failed_save_is_one_error_about_out(noise, tmp_path, monkeypatch):
    def fail(self, *args, **fields):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(ValueError, match="cannot be written: No space.*choose another --out"):
        train(noise, tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "extract"),
    [
        (JSON, lambda states, curves: curves),
        (MSGPACK, lambda states, curves: jax.device_get(states.variables)),
    ],
    ids=["json", "msgpack"],
)
def test_study_resumes_inside_a_network(noise, tmp_path, monkeypatch, codec, extract):
    update, skip = ProgressMeter.update, ProgressMeter.skip
    done = {"update": 0, "skip": 0, "stop": STEPS + 5}

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
                seeds=2,
                rates=[0.05, 1e30],
                extract=extract,
                codec=codec,
            )

    def part_names():
        return sorted(path.name for path in (tmp_path / "a" / "parts").iterdir())

    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path / "a")
    assert part_names() == [f"one.{codec.suffix}", "two.checkpoints"]
    done |= {"update": 0, "skip": 0, "stop": -1}
    resumed = run_study(tmp_path / "a")
    assert done == {"update": 4 * (STEPS - 5), "skip": 4 * (STEPS + 5), "stop": -1}
    assert part_names() == [f"one.{codec.suffix}", f"two.{codec.suffix}"]
    expected = run_study(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
