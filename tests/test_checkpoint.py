"""Checkpoints: exact round trips, retention, and corrupt files in any of them."""

import dataclasses
import shutil

import jax
import numpy as np
import optax
import pytest
from helpers.checkpoint_files import files_in, flip_middle_bit, step_names

from resflax import UserError, create_model
from resflax.run import checkpointer as checkpointer_module
from resflax.run.checkpoint import Checkpoint, latest_valid_metadata, restore_latest
from resflax.run.checkpointer import Checkpointer
from resflax.train import create_state, make_optimizer


def make_state(model_name, seed):
    """Returns a train state of random NumPy arrays, without computing its initial values."""
    optimizer = make_optimizer(
        "sgd", optax.constant_schedule(0.1), weight_decay=1e-4, grad_clip=1.0
    )
    model, rng = create_model(model_name), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: create_state(model, optimizer, 0, (8, 8, 1)))

    def draw(leaf):
        return np.asarray(100 * rng.random(leaf.shape)).astype(leaf.dtype)

    return dataclasses.replace(jax.tree.map(draw, shapes), seed=np.uint32(seed))


@pytest.fixture(scope="module")
def state():
    return make_state("cifar_resnet8", 7)


@pytest.fixture(scope="module")
def template():
    initial = make_state("cifar_resnet8", 0)
    return {"state": initial, "eval_batch_stats": initial.batch_stats}


def state_at(state, step):
    """Returns the state with another step and other parameters."""
    params = jax.tree.map(lambda x: x + np.float32(step), state.params)
    return dataclasses.replace(state, step=np.int32(step), params=params)


def save(folder, state, *steps, max_to_keep=3, accuracies=None):
    checkpointer = Checkpointer(folder, max_to_keep)
    for step, accuracy in zip(steps, accuracies or [None] * len(steps), strict=True):
        tree = {"state": state_at(state, step), "eval_batch_stats": {}}
        checkpointer.save(Checkpoint(step, tree, {"step": step}), accuracy)
    checkpointer.close()
    assert checkpointer.warnings == []


def restore(folder, template):
    """Returns the checkpoint that a resumed run restores, and all warnings."""
    checkpointer = Checkpointer(folder, 3)
    restored = checkpointer.restore(template)
    checkpointer.close()
    return restored, checkpointer.warnings


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_state_and_metadata_are_restored_bit_for_bit(tmp_path, state, template):
    state = jax.tree.map(np.array, state)
    state.params["head"]["bias"][:3] = -0.0, np.nan, 1e-42
    metadata = {"window": [{"loss": 0.1 + 0.2}, None], "name": "ü"}
    checkpointer = Checkpointer(tmp_path, 3)
    checkpointer.save(Checkpoint(1, {"state": state, "eval_batch_stats": {}}, metadata))
    checkpointer.close()
    restored, warnings = restore(tmp_path, template)
    assert_same(restored.tree["state"], state)
    assert restored.tree["eval_batch_stats"] == {}
    assert (restored.step, restored.metadata, warnings) == (1, metadata, [])
    assert int(restored.tree["state"].seed) == 7
    assert latest_valid_metadata(tmp_path) == metadata
    without_changes = restore_latest(tmp_path, template)
    assert_same(without_changes.tree["state"], state)
    assert (without_changes.step, without_changes.metadata) == (1, metadata)


def test_eval_batch_stats_are_saved_next_to_the_state(tmp_path, state, template):
    eval_batch_stats = jax.tree.map(lambda x: x + 1, state.batch_stats)
    checkpointer = Checkpointer(tmp_path, 3)
    tree = {"state": state, "eval_batch_stats": eval_batch_stats}
    checkpointer.save(Checkpoint(1, tree, {}))
    checkpointer.close()
    restored, _ = restore(tmp_path, template)
    assert_same(restored.tree["state"], state)
    assert_same(restored.tree["eval_batch_stats"], eval_batch_stats)
    assert_same(restore_latest(tmp_path, template).tree["eval_batch_stats"], eval_batch_stats)


def test_checkpoints_hold_any_dictionary_of_pytrees(tmp_path):
    tree = {"a": {"b": np.arange(3)}, "c": [np.float32(1), np.ones((1, 2), np.uint8)], "d": {}}
    checkpointer = Checkpointer(tmp_path, 2)
    checkpointer.save(Checkpoint(5, tree, {"x": None}))
    checkpointer.close()
    template = jax.tree.map(np.zeros_like, tree)
    restored, _ = restore(tmp_path, template)
    assert_same(restored.tree, tree)
    assert (restored.step, restored.metadata) == (5, {"x": None})


def test_optional_parts_that_a_checkpoint_lacks_are_empty(tmp_path):
    """A state may have got a part since it was saved, such as the collections of another module."""
    tree = {"state": {"params": np.arange(3), "ema": {}}}
    checkpointer = Checkpointer(tmp_path, 2)
    checkpointer.save(Checkpoint(5, tree, {}))
    checkpointer.close()
    later = {"state": {"params": np.zeros(3, np.int64), "ema": {}, "collections": {}}}
    restored, _ = restore(tmp_path, later)
    assert_same(restored.tree, {"state": tree["state"] | {"collections": {}}})
    with pytest.raises(UserError, match="belongs to another network"):
        restore(tmp_path, {"state": later["state"] | {"collections": {"calls": np.zeros(2)}}})


@pytest.mark.slow
def test_last_and_best_checkpoints_are_kept(tmp_path, state):
    accuracies = [0.1, 0.9, 0.3, None, 0.2, 0.5]
    save(tmp_path, state, *range(1, 7), max_to_keep=2, accuracies=accuracies)
    assert step_names(tmp_path) == ["2", "5", "6"]
    save(tmp_path, state, 7, 8, max_to_keep=2, accuracies=[None, 0.4])
    assert step_names(tmp_path) == ["2", "7", "8"]


DAMAGES = {
    "flipped": flip_middle_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


def assert_damage_to_each_file_is_reported(damage, tmp_path, state, template, step, restored_step):
    """Damages each file of a step in turn; `restored_step` must be restored, with one warning."""
    save(tmp_path / "intact" / "checkpoints", state, 10, 20)
    names = files_in(tmp_path / "intact" / "checkpoints" / str(step))
    names = [path.relative_to(tmp_path / "intact") for path in names]
    assert len(names) > 10
    for number, name in enumerate(names):
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "intact", run)
        DAMAGES[damage](run / name)
        restored, warnings = restore(run / "checkpoints", template)
        assert_same(restored.tree["state"], state_at(state, restored_step))
        assert (restored.step, restored.metadata) == (restored_step, {"step": restored_step})
        assert len(warnings) == 1
        assert f"checkpoint at step {step} was skipped" in warnings[0]
        assert name.name in warnings[0]
        assert warnings[0].endswith(f"moved to {run / 'damaged' / str(step)}")
        remaining = [path for path in names if path != name or damage != "deleted"]
        moved = files_in(run / "damaged" / str(step))
        assert len(moved) == len(remaining)  # nothing else is lost


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_the_latest_restores_the_one_before(damage, tmp_path, state, template):
    assert_damage_to_each_file_is_reported(damage, tmp_path, state, template, 20, 10)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_an_older_checkpoint_is_reported(damage, tmp_path, state, template):
    """Its array data are verified in the background, after the latest was restored."""
    assert_damage_to_each_file_is_reported(damage, tmp_path, state, template, 10, 20)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_the_best_accuracy_is_reported(damage, tmp_path, state, template):
    """Orbax finds the best by all accuracies: a changed one would keep the wrong checkpoint."""
    folder = tmp_path / "checkpoints"
    save(folder, state, 10, 20, 30, accuracies=[0.9, 0.5, None])
    DAMAGES[damage](folder / "10" / "metrics" / "metrics")
    assert restore_latest(folder, template).step == 30
    restored, warnings = restore(folder, template)
    assert_same(restored.tree["state"], state_at(state, 30))
    assert len(warnings) == 1
    assert "checkpoint at step 10 was skipped: metrics/metrics" in warnings[0]
    assert (tmp_path / "damaged" / "10").is_dir()
    save(folder, state, 40, max_to_keep=2, accuracies=[0.4])
    assert step_names(folder) == ["20", "30", "40"]  # 20 is the best now


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "no manifest", "other arrays", "added file"])
def test_incomplete_checkpoints_are_skipped(kind, tmp_path, state, template):
    folder = tmp_path / "checkpoints"
    save(folder, state, 10, 20)
    if kind == "empty":
        (folder / "30").mkdir()
    elif kind == "no manifest":
        shutil.copytree(folder / "20", folder / "30")
        (folder / "30" / "checksums.json").unlink()
    elif kind == "other arrays":  # intact files of another step
        shutil.copytree(folder / "20", folder / "30")
        shutil.rmtree(folder / "30" / "state")
        shutil.copytree(folder / "10" / "state", folder / "30" / "state")
    else:
        shutil.copytree(folder / "20", folder / "30")
        (folder / "30" / "state" / "more").write_text("")
    restored, warnings = restore(folder, template)
    assert_same(restored.tree["state"], state_at(state, 20))
    assert len(warnings) == 1
    assert "step 30 was skipped" in warnings[0]
    save(folder, state, 30)  # the step can be saved again
    assert restore(folder, template)[0].step == 30


def test_restore_starts_at_zero_if_all_are_corrupt(tmp_path, state, template):
    folder = tmp_path / "checkpoints"
    save(folder, state, 10, 20)
    for step in (10, 20):
        (folder / f"{step}" / "checksums.json").write_text("{}")
    with pytest.raises(UserError, match="at step 20 is corrupt.*at step 10 is corrupt"):
        restore_latest(folder, template)
    assert latest_valid_metadata(folder) is None
    restored, warnings = restore(folder, template)
    assert restored is None
    assert len(warnings) == 2


def test_checkpoints_of_another_network_are_one_line(tmp_path, state):
    save(tmp_path, state, 10)
    other = make_state("cifar_resnet14", 0)
    with pytest.raises(UserError, match="step 10 belongs to another network or optimizer") as e:
        restore(tmp_path, {"state": other, "eval_batch_stats": other.batch_stats})
    assert "\n" not in str(e.value)


def test_folders_without_checkpoints_are_named(tmp_path, template):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"no checkpoint.*{folder.name}"):
            restore_latest(folder, template)


@pytest.mark.parametrize("killed", ["before the new one", "in the new one", "after the new one"])
def test_replaced_checkpoint_survives_a_kill(killed, state, template, tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, state, 5)
    (folder / "5").rename(folder / "5.replaced")
    if killed != "before the new one":
        save(tmp_path / "other", state_at(state, 2), 5)
        shutil.copytree(tmp_path / "other" / "5", folder / "5")
    if killed == "in the new one":
        (folder / "5" / "checksums.json").unlink()
    checkpointer = Checkpointer(folder, 3)
    restored = checkpointer.restore(template)
    checkpointer.close()
    assert checkpointer.warnings == []
    assert [path.name for path in folder.iterdir()] == ["5"]
    expected = state_at(state_at(state, 2) if killed == "after the new one" else state, 5)
    assert_same(restored.tree["state"], expected)


def test_checkpoint_of_a_step_is_there_until_it_is_replaced(state, template, tmp_path, monkeypatch):
    save(tmp_path, state, 5)
    checkpointer = Checkpointer(tmp_path, 3)
    tree = {"state": state_at(state, 6), "eval_batch_stats": {}}

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointer_module, "write_manifest", fail)
    checkpointer.save(Checkpoint(5, tree, {"step": 5}), None)
    with pytest.raises(UserError, match="the checkpoint at step 5 is intact"):
        checkpointer.close()
    monkeypatch.undo()
    restored = Checkpointer(tmp_path, 3).restore(template)
    assert_same(restored.tree["state"], state_at(state, 5))
