"""The directory of a run: config, records, results and lock."""

import hashlib
import json

import numpy as np
import pytest

from resflax import UserError
from resflax.train import Workdir, default_config, params_sha256
from resflax.train.config import INCREASABLE_KEYS, RESUMABLE_KEYS, to_json_dict


def make_config(**values):
    """Returns the default config with changes, as JSON values; `a__b=1` sets `a.b`."""
    config = default_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return to_json_dict(config)


def open_workdir(path, **values):
    return Workdir.open(
        path, make_config(**values), resumable=RESUMABLE_KEYS, increasable=INCREASABLE_KEYS
    )


def test_workdir_stores_config_records_and_results(tmp_path):
    workdir = open_workdir(tmp_path / "a" / "b")
    assert workdir.read_results() is None
    workdir.add_record({"step": 1})
    workdir.add_record({"step": 2})
    workdir.write_results({"steps": 2})
    assert workdir.records.all() == [{"step": 1}, {"step": 2}]
    assert workdir.read_results() == {"steps": 2}
    assert json.loads((workdir.path / "results.json").read_text()) == {"steps": 2}
    assert json.loads((workdir.path / "config.json").read_text()) == make_config()


def test_workdir_that_does_not_write_changes_nothing(tmp_path):
    """Processes other than the main one do not write."""
    workdir = Workdir(tmp_path / "run", writes=False)
    workdir.add_record({"step": 1})
    workdir.write_results({"steps": 2})
    workdir.write_skipped(["an example"])
    assert workdir.truncate_records(3, "", 1) == ""
    assert list(tmp_path.iterdir()) == []


def test_skipped_examples_are_listed_in_a_file(tmp_path):
    workdir = open_workdir(tmp_path)
    workdir.write_skipped([])
    assert not (tmp_path / "skipped.txt").exists()
    workdir.write_skipped(["a.png: is empty", "b.png: is empty"])
    assert (tmp_path / "skipped.txt").read_text() == "a.png: is empty\nb.png: is empty\n"


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json", "checkpoints", "curves.png"])
def test_run_without_config_is_rejected_unchanged(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=rf"has {name} of a run but no config.json: choose another"):
        open_workdir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_corrupt_config_without_checkpoint_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("prec")
    with pytest.raises(UserError, match="has a corrupt config.json") as e:
        open_workdir(tmp_path)
    assert "\n" not in str(e.value)
    assert (tmp_path / "config.json").read_text() == "prec"


def test_keys_of_later_versions_have_their_defaults(tmp_path):
    """A run of an earlier version, whose config lacks keys, is resumed unless they are changed."""
    open_workdir(tmp_path).close()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sam_rho"], config["data"]["size_schedule"], config["max_steps"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    defaults = to_json_dict(default_config())
    for values in ({}, {"max_steps": 5, "sam_rho": 0.1}):
        new = make_config(**values)
        if not values:
            Workdir.inspect(tmp_path, new, defaults=defaults)
            continue
        with pytest.raises(UserError, match=r"\(max_steps 0, now 5; sam_rho 0.0, now 0.1\)"):
            Workdir.inspect(tmp_path, new, defaults=defaults)


def test_another_config_is_rejected_with_the_differences(tmp_path):
    open_workdir(tmp_path, epochs=9).close()
    with pytest.raises(UserError) as e:
        open_workdir(tmp_path, epochs=5, seed=3, data__flip=True, learning_rate=0.2)
    differences = (
        "(data.flip False, now True; epochs 9, now 5, which can only increase; learning_rate 0.1,"
        " now 0.2; seed 0, now 3)"
    )
    assert differences in str(e.value)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 9


def test_keys_without_effect_on_the_result_may_differ(tmp_path):
    open_workdir(tmp_path).close()
    workdir = open_workdir(
        tmp_path,
        parallel="mesh",
        mesh__fsdp=2,
        data__num_workers=3,
        data__data_dir="/x",
        data__placement="host",
        checkpoint_every_steps=5,
        checkpoint_max_to_keep=9,
        checkpoint_every_minutes=1.0,
    )
    assert workdir.notes == []
    assert json.loads((tmp_path / "config.json").read_text())["parallel"] == "mesh"


def test_more_epochs_are_noted_and_results_renamed(tmp_path):
    workdir = open_workdir(tmp_path)
    workdir.write_results({"steps": 2})
    workdir.close()
    workdir = open_workdir(tmp_path, epochs=11)
    assert "epochs raised from 10 to 11" in workdir.notes[0]
    assert workdir.read_results() is None
    assert json.loads((tmp_path / "results-10-epochs.json").read_text()) == {"steps": 2}


def make_record(step):
    return {"step": step, "epoch": step / 8, "split": "train", "loss": 0.1 + 0.2, "accuracy": 0.5}


@pytest.fixture
def five_records(tmp_path):
    """A workdir with five records, and the arguments that truncate it to the first three."""
    workdir = open_workdir(tmp_path)
    for step in range(5):
        workdir.add_record(make_record(step))
        if step == 2:
            at_checkpoint = workdir.records.count, workdir.records.sha256, step
    workdir.close()
    return open_workdir(tmp_path), at_checkpoint


def test_records_newer_than_the_checkpoint_are_truncated(five_records):
    workdir, at_checkpoint = five_records
    with open(workdir.records.path, "a") as file:
        file.write('{"ste')  # killed while writing
    assert workdir.truncate_records(*at_checkpoint) == ""
    assert workdir.records.all() == [make_record(step) for step in range(3)]
    assert (workdir.records.count, workdir.records.sha256) == at_checkpoint[:2]
    workdir.add_record(make_record(9))
    data = workdir.records.path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert (workdir.records.count, workdir.records.sha256) == (4, sha256)
    assert not (workdir.path / "damaged").exists()


@pytest.mark.slow
def test_any_flipped_bit_in_the_records_is_reported(five_records):
    """The readable records are kept; the corrupt file is moved."""
    workdir, at_checkpoint = five_records
    intact = workdir.records.path.read_bytes()
    length = len(b"".join(intact.splitlines(keepends=True)[:3]))
    for bit in range(0, 8 * length, 7):
        data = bytearray(intact)
        data[bit // 8] ^= 1 << bit % 8
        workdir.records.path.write_bytes(data)
        warning = workdir.truncate_records(*at_checkpoint)
        assert warning.startswith("metrics.jsonl has changed since step 2: ")
        [moved] = (workdir.path / "damaged").iterdir()
        assert warning.endswith(f"moved to {moved}")
        assert moved.read_bytes() == data
        moved.unlink()
        readable = workdir.records.all()
        assert len(readable) == workdir.records.count >= 1
        assert all({"step", "split", "loss", "accuracy"} <= set(record) for record in readable)
        assert sum(record in readable for record in map(make_record, range(3))) >= 1
    assert bit > 8 * length - 8


def test_missing_records_are_reported(five_records):
    workdir, at_checkpoint = five_records
    workdir.records.path.unlink()
    warning = workdir.truncate_records(*at_checkpoint)
    assert warning.endswith("0 of its 3 records can be read")
    workdir.add_record(make_record(3))
    assert workdir.records.all() == [make_record(3)]


def test_next_free_is_the_first_path_without_a_run(tmp_path):
    path = tmp_path / "run"
    assert Workdir.next_free(path) == path
    open_workdir(path).close()
    open_workdir(tmp_path / "run-2").close()
    assert Workdir.next_free(path) == tmp_path / "run-3"


def test_directory_with_unrelated_files_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    open_workdir(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "text"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_path_that_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as e:
        open_workdir(tmp_path / name)
    assert "\n" not in str(e.value)


def test_second_run_in_one_workdir_is_rejected(tmp_path):
    first = open_workdir(tmp_path)
    with pytest.raises(UserError, match="is in use by another process: wait for it to finish"):
        open_workdir(tmp_path)
    first.close()
    open_workdir(tmp_path).close()


def test_error_messages_name_the_given_option(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        Workdir.open(tmp_path, {}, option="--out")


def test_params_sha256_hashes_leaves_in_path_order():
    a, b, c = (np.full(2, k, np.float32) for k in range(3))
    params = {"head": {"kernel": c, "bias": b}, "conv": {"kernel": a}}
    expected = hashlib.sha256(a.tobytes() + b.tobytes() + c.tobytes()).hexdigest()
    assert params_sha256(params) == expected
    assert params_sha256({**params, "conv": {"kernel": a + 1e-7}}) != expected
