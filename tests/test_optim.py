"""Schedules and optimisers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import UserError
from resflax.train import make_optimizer, make_schedule
from resflax.train.schedules import SCHEDULES

PARAMS = {
    "conv": {"kernel": np.float32([1.0, -2.0])},
    "norm": {"scale": np.float32([3.0]), "bias": np.float32([4.0])},
}
GRADS = {
    "conv": {"kernel": np.float32([0.5, 1.0])},
    "norm": {"scale": np.float32([-1.0]), "bias": np.float32([2.0])},
}


def run(optimizer, steps=3):
    params = {k: {n: jnp.asarray(x) for n, x in v.items()} for k, v in PARAMS.items()}
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_sgd_is_its_recurrence(nesterov, mask):
    """v <- m v + g + d w; w <- w - r v, or r (m v + g + d w) if Nesterov's."""
    rate, momentum, decay = 0.1, 0.9, 0.01
    optimizer = make_optimizer(
        "sgd", rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, mask=mask
    )
    found = run(optimizer)
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            d = decay if name == "kernel" or mask == "all" else 0.0
            w, v = w.astype(np.float64), 0.0
            for _ in range(3):
                g = GRADS[module][name] + d * w
                v = momentum * v + g
                w = w - rate * (momentum * v + g if nesterov else v)
            np.testing.assert_allclose(found[module][name], w, rtol=1e-5)


def test_plain_sgd_is_the_gradient():
    found = run(make_optimizer("sgd", 0.1, momentum=0.0), steps=1)
    np.testing.assert_allclose(found["conv"]["kernel"], [0.95, -2.1], rtol=1e-6)


def test_adamw_is_its_recurrence():
    rate, decay, b1, b2, eps = 0.1, 0.01, 0.9, 0.999, 1e-8
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        found = run(make_optimizer("adamw", rate, weight_decay=decay))
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            d = decay if name == "kernel" else 0.0
            w, m, v = w.astype(np.float64), 0.0, 0.0
            g = GRADS[module][name].astype(np.float64)
            for t in range(1, 4):
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                w = w - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + d * w)
            np.testing.assert_allclose(found[module][name], w, rtol=1e-5)


def lars_direction(g, w, *, scaled):
    ratio = 0.001 * np.linalg.norm(w) / np.linalg.norm(g) if scaled else 1.0
    return ratio * g


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_lars_is_its_recurrence(nesterov, mask):
    """You et al. 2017, algorithm 1: the rate is inside the momentum; optax's trust ratio."""
    rate, momentum, decay = 2.0, 0.9, 0.01
    optimizer = make_optimizer(
        "lars", rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, mask=mask
    )
    found = run(optimizer)
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            within = name == "kernel" or mask == "all"
            w, v = w.astype(np.float64), 0.0
            for _ in range(3):
                g = GRADS[module][name] + (decay * w if within else 0.0)
                g = rate * lars_direction(g, w, scaled=within)
                v = momentum * v + g
                w = w - (momentum * v + g if nesterov else v)
            np.testing.assert_allclose(found[module][name], w, rtol=1e-5)


@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_lamb_is_its_recurrence(mask):
    """You et al. 2019, algorithm 2."""
    rate, decay, b1, b2, eps = 0.1, 0.01, 0.9, 0.999, 1e-6
    with jax.numpy_dtype_promotion("standard"):
        found = run(make_optimizer("lamb", rate, weight_decay=decay, mask=mask))
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            within = name == "kernel" or mask == "all"
            w, m, v = w.astype(np.float64), 0.0, 0.0
            g = GRADS[module][name].astype(np.float64)
            for t in range(1, 4):
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + (decay * w) * within
                w = w - rate * u * (np.linalg.norm(w) / np.linalg.norm(u) if within else 1.0)
            np.testing.assert_allclose(found[module][name], w, rtol=1e-5)


def test_lamb_on_everything_is_optax_s():
    with jax.numpy_dtype_promotion("standard"):
        ours = run(make_optimizer("lamb", 0.1, weight_decay=0.01, mask="all"))
        theirs = run(optax.lamb(0.1, weight_decay=0.01))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_kernel_of_zeros_still_moves():
    """Its trust ratio would be 0 for ever."""
    params, grads = {"kernel": jnp.zeros(2)}, {"kernel": jnp.ones(2)}
    for name in ("lars", "lamb"):
        optimizer = make_optimizer(name, 0.1)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
        assert (updates["kernel"] < 0).all()


def test_clipping_scales_the_whole_gradient_to_the_norm():
    norm = np.sqrt(0.5**2 + 1 + 1 + 4)
    found = run(make_optimizer("sgd", 1.0, momentum=0.0, grad_clip_norm=0.5), steps=1)
    np.testing.assert_allclose(found["norm"]["bias"], 4 - 2 * 0.5 / norm, rtol=1e-5)
    loose = run(make_optimizer("sgd", 1.0, momentum=0.0, grad_clip_norm=100.0), steps=1)
    np.testing.assert_allclose(loose["norm"]["bias"], 2.0, rtol=1e-6)


def test_cosine_with_warm_up_is_its_formula():
    schedule = make_schedule("cosine", peak=0.4, steps=50, warmup_steps=10)
    for step in range(50):
        rise, fall = 0.4 * (step + 1) / 10, 0.2 * (1 + np.cos(np.pi * (step - 10) / 40))
        np.testing.assert_allclose(
            schedule(step), rise if step < 10 else fall, rtol=1e-5, atol=1e-7
        )


def test_steps_fall_where_they_are_said_to_with_and_without_warm_up():
    for warmup in (0, 5):
        schedule = make_schedule(
            "step", peak=1.0, steps=40, warmup_steps=warmup, boundaries=(20, 30)
        )
        rates = [float(schedule(step)) for step in range(40)]
        expected = [1.0] * 20 + [0.1] * 10 + [0.01] * 10
        expected[:warmup] = [(k + 1) / 5 for k in range(warmup)]
        np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_two_falls_on_one_step_are_two():
    schedule = make_schedule("step", peak=1.0, steps=9, boundaries=(3, 3))
    np.testing.assert_allclose([schedule(2), schedule(3)], [1.0, 0.01], rtol=1e-6)


def test_constant_is_constant():
    assert {float(make_schedule("constant", peak=0.5, steps=9)(s)) for s in range(9)} == {0.5}


def test_one_step_of_warm_up_is_the_peak_at_once():
    schedule = make_schedule("constant", peak=0.5, steps=9, warmup_steps=1)
    assert [float(schedule(s)) for s in (0, 1)] == [0.5, 0.5]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_with_warm_up_is_its_formula(power):
    schedule = make_schedule("polynomial", peak=0.4, steps=50, warmup_steps=10, power=power)
    for step in range(51):
        rise, fall = 0.4 * (step + 1) / 10, 0.4 * (1 - (step - 10) / 40) ** power
        np.testing.assert_allclose(
            schedule(step), rise if step < 10 else fall, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(("warmup", "summit"), [(0, 30), (7, 7), (100, 98)])
def test_one_cycle_of_cosines_is_its_formula(warmup, summit):
    schedule = make_schedule("cosine_onecycle", peak=0.5, steps=100, warmup_steps=warmup)

    def half(low, high, part):  # of a cosine, from low to high
        return low + (high - low) * (1 - np.cos(np.pi * part)) / 2

    for step in range(101):
        rise = half(0.5 / 25, 0.5, step / summit)
        fall = half(0.5, 0.5 / 25e4, (step - summit) / (100 - summit))
        np.testing.assert_allclose(
            schedule(step), rise if step < summit else fall, rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize(("warmup", "corners"), [(0, (30, 85)), (58, (58, 91)), (100, (98, 99))])
def test_one_cycle_of_lines_has_three_of_them(warmup, corners):
    schedule = make_schedule("linear_onecycle", peak=0.5, steps=100, warmup_steps=warmup)
    steps = np.arange(101)
    lines = np.interp(steps, (0, *corners, 100), (0.5 / 25, 0.5, 0.5 / 25, 0.5 / 25e4))
    np.testing.assert_allclose([schedule(s) for s in steps], lines, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_a_run_of_few_steps_has_rates_up_to_the_peak(name, steps, warmup):
    schedule = make_schedule(name, peak=0.5, steps=steps, warmup_steps=min(warmup, steps))
    rates = np.array([schedule(step) for step in range(steps)])
    assert (rates > 0).all()
    assert rates.max() == pytest.approx(0.5) or (steps == 1 and rates[0] < 0.5)


def test_a_schedule_takes_counts_of_a_traced_step():
    for name in SCHEDULES:
        schedule = make_schedule(name, peak=0.5, steps=20, warmup_steps=4, boundaries=(9,))
        traced = jax.jit(jax.vmap(schedule))(jnp.arange(20))
        np.testing.assert_allclose(traced, [schedule(step) for step in range(20)], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make_schedule("cosin", peak=1, steps=1),
            "unknown schedule 'cosin'.*one of constant, ",
        ),
        (
            lambda: make_optimizer("adam", 0.1),
            "unknown optimizer 'adam': expected one of sgd, adamw, lars, lamb",
        ),
        (lambda: make_optimizer("sgd", 0.1, mask="bias"), "unknown decay_mask 'bias'"),
    ],
)
def test_unknown_names_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
