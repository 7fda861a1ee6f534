import hashlib
import json

import numpy as np
import pytest

from resflax import UserError
from resflax.train import RunDir, default_config, params_sha256


def test_a_folder_keeps_what_is_written(tmp_path):
    config = default_config()
    run = RunDir.open(tmp_path / "a" / "b", config)
    run.record({"step": 1})
    run.record({"step": 2})
    run.finish({"steps": 2})
    assert run.records() == [{"step": 1}, {"step": 2}]
    assert json.loads((run.path / "results.json").read_text()) == {"steps": 2}
    written = json.loads((run.path / "config.json").read_text())
    assert written == json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "results.json", "checkpoints", "curves.png"]
)
def test_another_runs_folder_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=rf"holds another run \({name}\)"):
        RunDir.open(tmp_path, default_config())
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_an_empty_folder_or_one_with_other_things_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDir.open(tmp_path, default_config())
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as e:
        RunDir.open(tmp_path / place, default_config())
    assert "\n" not in str(e.value)


def test_of_two_runs_that_start_at_once_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(RunDir, "check", lambda path: None)
    RunDir.open(tmp_path, default_config())
    with pytest.raises(UserError, match="holds another run"):
        RunDir.open(tmp_path, default_config())


def test_the_hash_is_over_the_leaves_in_sorted_path_order():
    a, b, c = (np.full(2, k, np.float32) for k in range(3))
    params = {"head": {"kernel": c, "bias": b}, "conv": {"kernel": a}}
    expected = hashlib.sha256(a.tobytes() + b.tobytes() + c.tobytes()).hexdigest()
    assert params_sha256(params) == expected
    assert params_sha256({**params, "conv": {"kernel": a + 1e-7}}) != expected
