import dataclasses
import shutil

import jax
import numpy as np
import optax
import pytest

from resflax import UserError, create_model
from resflax.run.checkpoint import Checkpoints, Saved, restore
from resflax.train import create_state, make_optimizer, make_train_step


def make_state(seed):
    model = create_model("cifar_resnet8")
    optimizer = make_optimizer(
        "sgd", optax.constant_schedule(0.1), weight_decay=1e-4, grad_clip_norm=1.0
    )
    return model, optimizer, create_state(model, optimizer, seed, (8, 8, 1))


@pytest.fixture(scope="module")
def state():
    """A state that was trained for a step, as NumPy arrays."""
    model, optimizer, state = make_state(7)
    batch = {
        "image": np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32),
        "label": np.arange(4),
    }
    return jax.device_get(jax.jit(make_train_step(model, optimizer))(state, batch)[0])


@pytest.fixture(scope="module")
def like():
    return make_state(0)[2]


def at(state, step):
    """The same with another step, and with that in the last bits of its arrays."""
    params = jax.tree.map(lambda x: x + np.float32(step), state.params)
    return dataclasses.replace(state, step=np.int32(step), params=params)


def save(folder, state, *steps, keep=3, accuracies=None):
    checkpoints = Checkpoints(folder, keep)
    for step, accuracy in zip(steps, accuracies or [None] * len(steps), strict=True):
        checkpoints.save(Saved(at(state, step), {"of": step}, {}), accuracy)
    checkpoints.close()


def resumed(folder, like):
    """What a start would go on from, and the warnings."""
    checkpoints = Checkpoints(folder, 3)
    saved = checkpoints.restore(like)
    checkpoints.close()
    return saved, checkpoints.warnings


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_state_comes_back_bit_for_bit_with_what_was_beside_it(tmp_path, state, like):
    state = jax.tree.map(np.array, state)
    state.params["head"]["bias"][:3] = -0.0, np.nan, 1e-42
    beside = {"window": [{"loss": 0.1 + 0.2}, None], "name": "ü"}
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(Saved(state, beside, {}))
    checkpoints.close()
    saved, warnings = resumed(tmp_path, like)
    assert_same(saved.state, state)
    assert (saved.metadata, saved.eval_batch_stats, warnings) == (beside, {}, [])
    assert int(saved.state.seed) == 7
    assert_same(restore(tmp_path, like), state)


def test_settled_statistics_lie_beside_the_running_ones(tmp_path, state, like):
    settled = jax.tree.map(lambda x: x + 1, state.batch_stats)
    checkpoints = Checkpoints(tmp_path, 3)
    checkpoints.save(Saved(state, {}, settled))
    checkpoints.close()
    saved, _ = resumed(tmp_path, like)
    assert_same(saved.state, state)
    assert_same(saved.eval_batch_stats, settled)
    assert_same(restore(tmp_path, like).batch_stats, settled)


def test_the_last_and_the_best_are_kept(tmp_path, state):
    accuracies = [0.1, 0.9, 0.3, None, 0.2, 0.5]
    save(tmp_path, state, *range(1, 7), keep=2, accuracies=accuracies)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5", "6"]
    save(tmp_path, state, 7, 8, keep=2, accuracies=[None, 0.4])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "7", "8"]


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES = {
    "flipped": lambda path: flip(path, 8 * path.stat().st_size // 2 + 3),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_told_and_the_step_before_taken(damage, tmp_path, state, like):
    save(tmp_path / "good" / "checkpoints", state, 10, 20)
    names = [p.relative_to(tmp_path) for p in files(tmp_path / "good" / "checkpoints" / "20")]
    assert len(names) > 10
    for number, name in enumerate(names):
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", run)
        DAMAGES[damage](run / name.relative_to("good"))
        saved, warnings = resumed(run / "checkpoints", like)
        assert_same(saved.state, at(state, 10))
        assert saved.metadata == {"of": 10}
        assert len(warnings) == 1
        assert "checkpoint of step 20 is passed over" in warnings[0]
        assert name.name in warnings[0]
        assert (run / "damaged" / "20").is_dir()  # nothing is lost


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_the_best_is_told_and_the_last_taken(damage, tmp_path, state, like):
    """Orbax reads all accuracies to know the best: a flip there might keep another, in silence."""
    folder = tmp_path / "checkpoints"
    save(folder, state, 10, 20, 30, accuracies=[0.9, 0.5, None])
    DAMAGES[damage](folder / "10" / "metrics" / "metrics")
    assert_same(restore(folder, like), at(state, 30))
    saved, warnings = resumed(folder, like)
    assert_same(saved.state, at(state, 30))
    assert len(warnings) == 1
    assert "checkpoint of step 10 is passed over: metrics/metrics" in warnings[0]
    assert (tmp_path / "damaged" / "10").is_dir()
    save(folder, state, 40, keep=2, accuracies=[0.4])
    assert sorted(p.name for p in folder.iterdir()) == ["20", "30", "40"]  # 20 is the best now


@pytest.mark.parametrize("kind", ["empty folder", "half written", "other array", "added file"])
def test_what_is_not_a_whole_checkpoint_is_passed_over(kind, tmp_path, state, like):
    folder = tmp_path / "checkpoints"
    save(folder, state, 10, 20)
    if kind == "empty folder":
        (folder / "30").mkdir()
    elif kind == "half written":
        shutil.copytree(folder / "20", folder / "30")
        (folder / "30" / "checksums.json").unlink()
    elif kind == "other array":  # whole files that belong to another step
        shutil.copytree(folder / "20", folder / "30")
        shutil.rmtree(folder / "30" / "state")
        shutil.copytree(folder / "10" / "state", folder / "30" / "state")
    else:
        shutil.copytree(folder / "20", folder / "30")
        (folder / "30" / "state" / "more").write_text("")
    saved, warnings = resumed(folder, like)
    assert_same(saved.state, at(state, 20))
    assert len(warnings) == 1
    assert "step 30 is passed over" in warnings[0]
    save(folder, state, 30)  # the place is free again
    assert int(resumed(folder, like)[0].state.step) == 30


def test_all_damaged_is_a_start_from_nothing_with_a_warning_for_each(tmp_path, state, like):
    folder = tmp_path / "checkpoints"
    save(folder, state, 10, 20)
    for step in (10, 20):
        (folder / f"{step}" / "checksums.json").write_text("{}")
    with pytest.raises(UserError, match="step 20 is damaged.*step 10 is damaged"):
        restore(folder, like)
    saved, warnings = resumed(folder, like)
    assert saved is None
    assert len(warnings) == 2


def test_another_network_is_one_line(tmp_path, state):
    save(tmp_path, state, 10)
    other = create_state(create_model("cifar_resnet14"), optax.sgd(0.1), 0, (8, 8, 1))
    with pytest.raises(UserError, match="step 10 is of another network or optimiser") as e:
        resumed(tmp_path, other)
    assert "\n" not in str(e.value)


def test_a_folder_without_a_checkpoint_is_named(tmp_path, like):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no checkpoint"):
            restore(folder, like)
