"""Learning-rate schedules against their formulas."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.train import make_schedule
from resflax.train.schedules import SCHEDULES, cycle_ends


def test_cosine_with_warmup_equals_its_formula():
    schedule = make_schedule("cosine", peak=0.4, steps=50, warmup_steps=10)
    for step in range(50):
        rise, fall = 0.4 * (step + 1) / 10, 0.2 * (1 + np.cos(np.pi * (step - 10) / 40))
        np.testing.assert_allclose(
            schedule(step), rise if step < 10 else fall, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(
    ("steps", "warmup", "cycles"), [(60, 0, 3), (50, 4, 4), (7, 0, 1), (16, 1, 7)]
)
def test_cosine_cycles_equal_their_formula(steps, warmup, cycles):
    schedule = make_schedule(
        "cosine_cycles", peak=0.4, steps=steps, warmup_steps=warmup, cycles=cycles
    )
    ends = cycle_ends(steps, warmup, cycles)
    for start, end in itertools.pairwise([warmup, *ends]):
        for step in range(start, end):
            expected = 0.4 / 2 * (math.cos(math.pi * (step - start) / (end - start)) + 1)
            np.testing.assert_allclose(schedule(jnp.int32(step)), expected, rtol=1e-5, atol=1e-7)
    starts = [0.4 * (k + 1) / warmup for k in range(warmup)]
    np.testing.assert_allclose([schedule(k) for k in range(warmup)], starts, rtol=1e-5)
    for end in ends[:-1]:  # the next cycle starts at the peak
        np.testing.assert_allclose(schedule(end), 0.4, rtol=1e-6)
    np.testing.assert_allclose(schedule(steps), 0, atol=1e-7)


@pytest.mark.parametrize(
    ("steps", "warmup", "cycles"), [(16, 0, 7), (100, 0, 7), (30, 0, 4), (562, 12, 4), (4, 0, 4)]
)
def test_every_cosine_cycle_ends_at_a_low_rate(steps, warmup, cycles):
    ends = cycle_ends(steps, warmup, cycles)
    lengths = np.diff([warmup, *ends])
    assert (len(ends), ends[-1]) == (cycles, steps)
    assert lengths.max() - lengths.min() <= 1
    schedule = make_schedule(
        "cosine_cycles", peak=1.0, steps=steps, warmup_steps=warmup, cycles=cycles
    )
    for end, length in zip(ends, lengths, strict=True):  # 1 - cos(x) <= x^2 / 2
        assert schedule(end - 1) <= (math.pi / length) ** 2 / 4 + 1e-6


def test_more_cycles_than_steps_raise_user_errors():
    with pytest.raises(UserError, match="schedule_cycles is 5, but the run has 4 steps after the"):
        make_schedule("cosine_cycles", peak=1.0, steps=6, warmup_steps=2, cycles=5)


def test_step_schedule_decays_at_its_boundaries():
    for warmup in (0, 5):
        schedule = make_schedule(
            "step", peak=1.0, steps=40, warmup_steps=warmup, boundaries=(20, 30)
        )
        rates = [float(schedule(step)) for step in range(40)]
        expected = [1.0] * 20 + [0.1] * 10 + [0.01] * 10
        expected[:warmup] = [(k + 1) / 5 for k in range(warmup)]
        np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_step_schedule_decays_twice_at_a_repeated_boundary():
    schedule = make_schedule("step", peak=1.0, steps=9, boundaries=(3, 3))
    np.testing.assert_allclose([schedule(2), schedule(3)], [1.0, 0.01], rtol=1e-6)


def test_constant_schedule_is_constant():
    assert {float(make_schedule("constant", peak=0.5, steps=9)(s)) for s in range(9)} == {0.5}


def test_warmup_of_one_step_starts_at_the_peak():
    schedule = make_schedule("constant", peak=0.5, steps=9, warmup_steps=1)
    assert [float(schedule(s)) for s in (0, 1)] == [0.5, 0.5]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_with_warmup_equals_its_formula(power):
    schedule = make_schedule("polynomial", peak=0.4, steps=50, warmup_steps=10, power=power)
    for step in range(51):
        rise, fall = 0.4 * (step + 1) / 10, 0.4 * (1 - (step - 10) / 40) ** power
        np.testing.assert_allclose(
            schedule(step), rise if step < 10 else fall, rtol=1e-5, atol=1e-7
        )


@pytest.mark.slow
@pytest.mark.parametrize(("warmup", "peak_step"), [(0, 30), (7, 7), (100, 98)])
def test_cosine_onecycle_equals_its_formula(warmup, peak_step):
    schedule = make_schedule("cosine_onecycle", peak=0.5, steps=100, warmup_steps=warmup)

    def half(low, high, part):  # of a cosine, from low to high
        return low + (high - low) * (1 - np.cos(np.pi * part)) / 2

    for step in range(101):
        rise = half(0.5 / 25, 0.5, step / peak_step)
        fall = half(0.5, 0.5 / 25e4, (step - peak_step) / (100 - peak_step))
        np.testing.assert_allclose(
            schedule(step), rise if step < peak_step else fall, rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize(("warmup", "corners"), [(0, (30, 85)), (58, (58, 91)), (100, (98, 99))])
def test_linear_onecycle_has_three_linear_phases(warmup, corners):
    schedule = make_schedule("linear_onecycle", peak=0.5, steps=100, warmup_steps=warmup)
    steps = np.arange(101)
    lines = np.interp(steps, (0, *corners, 100), (0.5 / 25, 0.5, 0.5 / 25, 0.5 / 25e4))
    np.testing.assert_allclose([schedule(s) for s in steps], lines, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_short_schedules_are_positive_and_reach_the_peak(name, steps, warmup):
    schedule = make_schedule(name, peak=0.5, steps=steps, warmup_steps=min(warmup, steps))
    rates = np.array([schedule(step) for step in range(steps)])
    assert (rates > 0).all()
    assert rates.max() == pytest.approx(0.5) or (steps == 1 and rates[0] < 0.5)


@pytest.mark.slow
def test_schedules_can_be_traced():
    for name in SCHEDULES:
        schedule = make_schedule(name, peak=0.5, steps=20, warmup_steps=4, boundaries=(9,))
        traced = jax.jit(jax.vmap(schedule))(jnp.arange(20))
        np.testing.assert_allclose(traced, [schedule(step) for step in range(20)], rtol=1e-5)


@pytest.mark.parametrize(("cycles", "name"), [(1, "cosine"), (2, "cosine_cycles")])
def test_cosine_to_a_minimum_equals_the_formula_of_torch(cycles, name):
    """`CosineAnnealingLR`: eta_min + (lr - eta_min) (1 + cos(pi t / T_max)) / 2."""
    torch = pytest.importorskip("torch")
    schedule = make_schedule(name, peak=0.4, minimum=0.03, steps=20 * cycles, cycles=cycles)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    annealing = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 20, eta_min=0.03)
    for step in range(20 * cycles):
        np.testing.assert_allclose(schedule(step), annealing.get_last_lr()[0], rtol=1e-5)
        optimizer.step()
        annealing.step()


def test_polynomial_to_a_minimum_equals_its_formula():
    schedule = make_schedule("polynomial", peak=0.4, minimum=0.1, steps=10, power=2.0)
    rates = [0.1 + 0.3 * (1 - step / 10) ** 2 for step in range(11)]
    np.testing.assert_allclose([schedule(step) for step in range(11)], rates, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n, row in SCHEDULES.items() if not row.has_warmup])
def test_warmup_starts_at_its_learning_rate(name):
    schedule = make_schedule(name, peak=0.5, steps=20, warmup_steps=5, warmup_start=0.1)
    np.testing.assert_allclose(
        [schedule(step) for step in range(5)], np.linspace(0.1, 0.5, 5), rtol=1e-6
    )
    np.testing.assert_allclose(schedule(5), 0.5, rtol=1e-6)


def test_unknown_schedules_raise_user_errors():
    with pytest.raises(UserError, match="unknown schedule 'cosin'.*one of constant, "):
        make_schedule("cosin", peak=1, steps=1)
