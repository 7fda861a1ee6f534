import hashlib
import json

import numpy as np
import pytest

from resflax import UserError
from resflax.train import Workdir, default_config, params_sha256


def test_a_folder_keeps_what_is_written(tmp_path):
    config = default_config()
    run = Workdir.open(tmp_path / "a" / "b", config)
    run.record({"step": 1})
    run.record({"step": 2})
    run.finish({"steps": 2})
    assert run.records.all() == [{"step": 1}, {"step": 2}]
    assert json.loads((run.path / "results.json").read_text()) == {"steps": 2}
    written = json.loads((run.path / "config.json").read_text())
    assert written == json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json", "checkpoints", "curves.png"])
def test_a_folder_with_parts_of_a_run_alone_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=rf"holds {name} of a run but no config.json"):
        Workdir.open(tmp_path, default_config())
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_damaged_config_is_one_line_and_left(tmp_path):
    (tmp_path / "config.json").write_text("prec")
    with pytest.raises(UserError, match="holds a config.json that is damaged") as e:
        Workdir.open(tmp_path, default_config())
    assert "\n" not in str(e.value)
    assert (tmp_path / "config.json").read_text() == "prec"


def changed(**values):
    config = default_config()
    for key, value in values.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def test_another_config_is_refused_with_what_differs(tmp_path):
    Workdir.open(tmp_path, changed(epochs=9)).close()
    other = changed(epochs=5, seed=3, data__flip=True, learning_rate=0.2)
    with pytest.raises(UserError) as e:
        Workdir.open(tmp_path, other)
    told = "(data.flip False, now True; epochs 9, now 5; learning_rate 0.1, now 0.2; seed 0, now 3)"
    assert told in str(e.value)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 9


def test_where_it_runs_and_how_it_is_kept_may_change(tmp_path):
    Workdir.open(tmp_path, default_config()).close()
    free = changed(
        parallel="mesh", mesh__fsdp=2, data__workers=3, data__dir="/x", data__placement="host",
        checkpoint_every_steps=5, checkpoint_max_to_keep=9, checkpoint_every_minutes=1.0,
    )  # fmt: skip
    run = Workdir.open(tmp_path, free)
    assert run.notes == []
    assert json.loads((tmp_path / "config.json").read_text())["parallel"] == "mesh"


def test_more_epochs_are_said_and_earlier_results_kept(tmp_path):
    run = Workdir.open(tmp_path, default_config())
    run.finish({"steps": 2})
    run.close()
    run = Workdir.open(tmp_path, changed(epochs=11))
    assert "epochs raised from 10 to 11" in run.notes[0]
    assert run.results() is None
    assert json.loads((tmp_path / "results-10-epochs.json").read_text()) == {"steps": 2}


def line(step):
    return {"step": step, "epoch": step / 8, "split": "train", "loss": 0.1 + 0.2, "accuracy": 0.5}


@pytest.fixture
def five(tmp_path):
    """A folder with five records, and what a checkpoint knew after the first three of them."""
    run = Workdir.open(tmp_path, default_config())
    for step in range(5):
        run.record(line(step))
        if step == 2:
            known = run.records.count, run.records.sha256, step
    run.close()
    return Workdir.open(tmp_path, default_config()), known


def test_records_after_the_checkpoint_are_taken_back(five):
    run, known = five
    with open(run.records.path, "a") as file:
        file.write('{"ste')  # killed as it wrote
    assert run.truncate_records(*known) == ""
    assert run.records.all() == [line(step) for step in range(3)]
    assert (run.records.count, run.records.sha256) == known[:2]
    run.record(line(9))
    text = run.records.path.read_bytes()
    assert (run.records.count, run.records.sha256) == (4, hashlib.sha256(text).hexdigest())
    assert not (run.path / "damaged").exists()


def test_any_flipped_bit_in_the_records_is_told_and_what_can_be_read_stays(five):
    run, known = five
    whole = run.records.path.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:3])
    for bit in range(0, 8 * len(kept), 7):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        run.records.path.write_bytes(data)
        warning = run.truncate_records(*known)
        assert warning.startswith("metrics.jsonl is not what it was at step 2: ")
        [place] = (run.path / "damaged").iterdir()
        assert warning.endswith(f"it lies in {place}")
        assert place.read_bytes() == data  # nothing is lost
        place.unlink()
        left = run.records.all()
        assert len(left) == run.records.count >= 1
        assert all({"step", "split", "loss", "accuracy"} <= set(one) for one in left)
        assert sum(one in left for one in map(line, range(3))) >= 1
    assert bit > 8 * len(kept) - 8


def test_records_that_are_gone_are_told_and_the_run_goes_on(five):
    run, known = five
    run.records.path.unlink()
    assert run.truncate_records(*known).endswith("0 of its 3 lines can be read")
    run.record(line(3))
    assert run.records.all() == [line(3)]


def test_a_new_folder_beside_it_is_the_first_without_a_run(tmp_path):
    path = tmp_path / "run"
    assert Workdir.next_free(path) == path
    Workdir.open(path, default_config()).close()
    Workdir.open(tmp_path / "run-2", default_config()).close()
    assert Workdir.next_free(path) == tmp_path / "run-3"


def test_an_empty_folder_or_one_with_other_things_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    Workdir.open(tmp_path, default_config())
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as e:
        Workdir.open(tmp_path / place, default_config())
    assert "\n" not in str(e.value)


def test_of_two_runs_in_one_folder_at_once_one_is_refused(tmp_path):
    first = Workdir.open(tmp_path, default_config())
    with pytest.raises(UserError, match="is that of a run that runs now"):
        Workdir.open(tmp_path, default_config())
    first.close()
    Workdir.open(tmp_path, default_config()).close()


def test_the_hash_is_over_the_leaves_in_sorted_path_order():
    a, b, c = (np.full(2, k, np.float32) for k in range(3))
    params = {"head": {"kernel": c, "bias": b}, "conv": {"kernel": a}}
    expected = hashlib.sha256(a.tobytes() + b.tobytes() + c.tobytes()).hexdigest()
    assert params_sha256(params) == expected
    assert params_sha256({**params, "conv": {"kernel": a + 1e-7}}) != expected
