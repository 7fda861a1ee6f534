"""Host-side trainer state, and which keys a resumed run may change."""

import dataclasses
import json

import numpy as np
import pytest

from resflax.run.config_diff import config_diff
from resflax.run.trainer_state import TrainerState
from resflax.train.config import INCREASABLE_KEYS, RESUMABLE_KEYS


def step(*losses):
    """Returns the metrics of a step by member, and whether they are finite."""
    members = [{"loss": loss, "accuracy": loss / 2} for loss in losses]
    return members, [bool(np.isfinite(loss)) for loss in losses]


def test_window_means_exclude_skipped_steps():
    state = TrainerState()
    for loss in (1.0, np.nan, 2.0):
        state.add_step(*step(loss))
    assert (state.dropped, state.in_row) == ([1], [0])
    assert TrainerState(**json.loads(json.dumps(state.as_dict()))) == state
    assert state.pop_means() == {"loss": 1.5, "accuracy": 0.75, "dropped": 1}
    state.add_step(*step(np.nan))
    assert state.in_row == [1]
    assert state.pop_means() == {"loss": None, "accuracy": None, "dropped": 1}
    assert state.window == []


def test_window_means_of_members_exclude_diverged_ones():
    state = TrainerState.start(3)
    state.add_step(*step(1.0, np.nan, 6.0))
    state.diverged_at[1] = 1
    state.add_step(*step(2.0, 9.0, np.nan))
    assert (state.dropped, state.in_row) == ([0, 1, 1], [0, 1, 1])
    assert state.pop_means() == {
        "loss": 3.75,
        "accuracy": 1.875,
        "dropped": 2,
        "members": {"loss": [1.5, None, 6.0], "accuracy": [0.75, None, 3.0]},
    }


def test_trainer_state_consists_of_json_values():
    assert json.loads(json.dumps(TrainerState().as_dict())) == dataclasses.asdict(TrainerState())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"epochs": 1}, {"epochs": 2}, []),
        ({"epochs": 2}, {"epochs": 1}, ["epochs 2, now 1, which can only increase"]),
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
