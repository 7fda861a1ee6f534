"""Host-side trainer state, and which keys a resumed run may change."""

import dataclasses
import json

import numpy as np
import pytest

from resflax.run.config_diff import config_diff
from resflax.run.trainer_state import TrainerState
from resflax.train.config import INCREASABLE_KEYS, RESUMABLE_KEYS


def test_window_means_exclude_skipped_steps():
    state = TrainerState()
    state.add_step({"loss": 1.0, "accuracy": 0.5}, True)
    state.add_step({"loss": np.nan, "accuracy": 0.0}, False)
    state.add_step({"loss": 2.0, "accuracy": 1.0}, True)
    assert (state.dropped, state.in_row) == (1, 0)
    assert TrainerState(**json.loads(json.dumps(state.as_dict()))) == state
    assert state.pop_means() == {"loss": 1.5, "accuracy": 0.75, "dropped": 1}
    state.add_step({"loss": np.nan, "accuracy": 0.0}, False)
    assert state.in_row == 1
    assert state.pop_means() == {"loss": None, "accuracy": None, "dropped": 1}
    assert state.window == []


def test_trainer_state_consists_of_json_values():
    assert json.loads(json.dumps(TrainerState().as_dict())) == dataclasses.asdict(TrainerState())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"epochs": 1}, {"epochs": 2}, []),
        ({"epochs": 2}, {"epochs": 1}, ["epochs 2, now 1"]),
        ({"parallel": "pmap"}, {"parallel": "mesh"}, []),
        ({"mesh.fsdp": 1, "data.num_workers": 0}, {"mesh.fsdp": 2, "data.num_workers": 9}, []),
        ({"seed": 1}, {}, ["seed 1, now None"]),
        ({"data": {"flip": False}}, {"data": {"flip": True}}, ["data.flip False, now True"]),
        ({"data": {"data_dir": "a"}}, {"data": {"data_dir": "b"}}, []),
        ({"checkpoint_max_to_keep": 2}, {"checkpoint_max_to_keep": 3}, []),
    ],
)
def test_only_keys_without_effect_on_the_result_may_differ(old, new, expected):
    diff = config_diff(old, new, resumable=RESUMABLE_KEYS, increasable=INCREASABLE_KEYS)
    assert diff == expected
