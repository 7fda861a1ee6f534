"""Schedules and optimisers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import UserError
from resflax.train import make_optimizer, make_schedule

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


def test_clipping_scales_the_whole_gradient_to_the_norm():
    norm = np.sqrt(0.5**2 + 1 + 1 + 4)
    found = run(make_optimizer("sgd", 1.0, momentum=0.0, clip_norm=0.5), steps=1)
    np.testing.assert_allclose(found["norm"]["bias"], 4 - 2 * 0.5 / norm, rtol=1e-5)
    loose = run(make_optimizer("sgd", 1.0, momentum=0.0, clip_norm=100.0), steps=1)
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_schedule("cosin", peak=1, steps=1), "unknown schedule 'cosin'"),
        (
            lambda: make_optimizer("adam", 0.1),
            "unknown optimizer 'adam': expected one of sgd, adamw",
        ),
        (lambda: make_optimizer("sgd", 0.1, mask="bias"), "unknown decay_mask 'bias'"),
    ],
)
def test_unknown_names_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
