"""Studies that were stopped: what was half trained goes on, to the same bits."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from resflax.data import Dataset, InMemorySplit
from resflax.nn.batch_norm import BatchNorm
from resflax.study import snapshot as unfinished
from resflax.study import sweep as members
from resflax.study import told
from resflax.study.folder import ARRAYS, NUMBERS, Folder
from resflax.study.recipes import recipe
from resflax.study.snapshot import Snapshot
from resflax.study.sweep import train_each, train_members
from resflax.study.told import Told

STEPS = 8  # of 2.5 to an epoch: an epoch's batches are not all of one start


class Tiny(nn.Module):
    """All that a state can hold, quick to compile."""

    spec = SimpleNamespace(depths=(1,))

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dense(2)(nn.relu(BatchNorm(train=train)(x)))


@pytest.fixture(autouse=True)
def after_every_step(monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0.0)


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    split = InMemorySplit(images, (np.arange(40) % 2).astype(np.int32))
    return Dataset("noise", split, split, ("0", "1"))


def settings():
    config = recipe("digits", epochs=3, batch_size=16)
    config.data.pad_crop = 1  # randomness inside the step as well
    return config


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """The starts of this file share their programs, which would be the same: to save time."""
    optimizer, steps, kept = members._optimizer(settings(), 40), members._steps, {}

    def steps_of(model, *others):
        if model not in kept:
            kept[model] = steps(model, *others)
        return kept[model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "_optimizer", lambda config, examples: optimizer)
        patch.setattr(members, "_steps", steps_of)
        yield


def train(noise, file=None, *, stop=0):
    """Trains until `stop` steps are told; the states, the curves, and the steps of this start."""
    said, skipped = [], []

    def tell(text):
        said.append(text)
        if len(said) == stop:
            raise KeyboardInterrupt

    states, curves = train_members(
        Tiny(),
        noise,
        settings(),
        seeds=[3, 5],
        rates=[0.05, 1e30],
        tell=tell,
        skip=skipped.append,
        unfinished=file and Snapshot(file),
    )
    assert len(said) + sum(skipped) == STEPS
    return states, curves, len(said)


@pytest.fixture(scope="module")
def whole(noise):
    return train(noise)


def assert_same(found, expected):
    assert found[1] == expected[1]
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_training_that_was_stopped_twice_ends_at_the_same_bits(noise, whole, tmp_path):
    file = tmp_path / "a"
    for stop in (1, 3):  # after steps 1 and 4, both inside an epoch
        with pytest.raises(KeyboardInterrupt):
            train(noise, file, stop=stop)
    resumed = train(noise, file)
    assert resumed[2] == STEPS - 4
    assert_same(resumed, whole)


def test_a_file_that_cannot_be_read_is_one_line_and_a_new_start(noise, whole, tmp_path, capsys):
    file = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train(noise, file, stop=2)
    data = file.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for damaged in (b"", data[:20], data[:-1], bytes(flipped)):
        file.write_bytes(damaged)
        capsys.readouterr()
        way = Snapshot(file).resume(whole[0])
        assert way.states is whole[0]
        assert (way.history, way.window) == ([], [])
        said = capsys.readouterr().err
        assert said.startswith(f"warning: {file} ")
        assert said.count("\n") == 1
    file.write_bytes(data[:-1])
    started_anew = train(noise, file)
    assert started_anew[2] == STEPS
    assert_same(started_anew, whole)


def test_what_another_network_kept_is_not_taken_up(noise, whole, tmp_path, capsys):
    file = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train(noise, file, stop=2)
    other = jax.tree.map(lambda leaf: leaf[..., None], whole[0])
    assert Snapshot(file).resume(other).states is other
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {file} passed over")
    assert "it holds int32(4,) for int32(4, 1)" in said
    assert said.count("\n") == 1


def test_the_file_is_not_written_all_the_time(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 3600.0)
    train(noise, tmp_path / "a")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "take"),
    [
        (NUMBERS, lambda states, curves: curves),
        (ARRAYS, lambda states, curves: jax.device_get(states.variables)),
    ],
)
def test_a_study_goes_on_inside_the_network_it_was_at(noise, tmp_path, monkeypatch, form, take):
    work, skip = Told.work, Told.skip
    done = {"work": 0, "skip": 0, "stop": STEPS + 5}

    def counted(self, amount, text):
        done["work"] += amount
        work(self, amount, text)
        if done["work"] == 4 * done["stop"]:  # a step of Tiny is work of 4
            raise KeyboardInterrupt

    def passed(self, amount):
        done["skip"] += amount
        skip(self, amount)

    monkeypatch.setattr(members.Told, "work", counted)
    monkeypatch.setattr(members.Told, "skip", passed)

    def study(path):
        return train_each(
            Folder.open(path, {}),
            {"one": Tiny(), "two": Tiny()},
            noise,
            settings(),
            seeds=2,
            rates=[0.05, 1e30],
            take=take,
            form=form,
        )

    def files():
        return sorted(path.name for path in (tmp_path / "a" / "parts").iterdir())

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "a")
    assert files() == [f"one.{form.ending}", "two.unfinished"]
    done |= {"work": 0, "skip": 0, "stop": -1}
    found = study(tmp_path / "a")
    assert done == {"work": 4 * (STEPS - 5), "skip": 4 * (STEPS + 5), "stop": -1}
    assert files() == [f"one.{form.ending}", f"two.{form.ending}"]
    expected = study(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_time_that_is_left_counts_only_what_was_done_now(monkeypatch, capsys):
    monkeypatch.setattr(told.time, "monotonic", iter([0.0, 20.0]).__next__)
    said = Told(total=100, every=0)
    said.skip(50)
    said.work(10, "b")  # 10 in 20 seconds: 40 take 80
    assert capsys.readouterr().out == " 60%, 01:20 left: b\n"


def test_a_bar_begins_where_the_study_does(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    said = Told(total=100)
    said.skip(50)
    said.work(10, "b")
    assert (said.bar.n, said.bar.initial) == (60, 50)
    said.close()
