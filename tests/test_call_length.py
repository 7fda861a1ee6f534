"""The number of steps of each call, from the time that the calls before it took."""

import jax
import pytest

from resflax.train import call_length
from resflax.train.call_length import CALL_SECONDS, FEW_STEPS, CallLength


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock[0] += seconds` moves."""
    now = [0.0]
    monkeypatch.setattr(call_length.time, "monotonic", lambda: now[0])
    return now


def take(length, clock, seconds_per_step, *, compiles=False):
    count = length.steps
    with length.measure(count, compiles=compiles):
        clock[0] += count * seconds_per_step
    return count


@pytest.mark.parametrize("maximum", [1, 2, FEW_STEPS])
def test_few_steps_are_always_one_call(maximum, clock):
    length = CallLength(maximum)
    assert [take(length, clock, 10.0) for _ in range(3)] == [maximum] * 3


def test_many_steps_are_divided_by_their_time(clock):
    length = CallLength(10_000)
    assert take(length, clock, 100.0, compiles=True) == FEW_STEPS
    counts = [take(length, clock, 2**-7) for _ in range(3)]
    assert counts == [FEW_STEPS, CALL_SECONDS * 2**7, CALL_SECONDS * 2**7]
    assert take(length, clock, 100.0, compiles=True) == CALL_SECONDS * 2**7
    assert take(length, clock, 16.0) == CALL_SECONDS * 2**7
    assert take(length, clock, 2**-20) == FEW_STEPS
    assert take(length, clock, 2**-20) == 10_000


def test_processes_take_the_same_steps(clock, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    length = CallLength(10_000)
    assert [take(length, clock, 1.0) for _ in range(3)] == [10_000] * 3
