"""Optimizers against their formulas, in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import UserError
from resflax.train import make_optimizer

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


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_sgd_equals_its_recurrence(nesterov, mask):
    """v <- m v + g + d w; w <- w - r v, with Nesterov w - r (m v + g + d w)."""
    rate, momentum, decay = 0.1, 0.9, 0.01
    optimizer = make_optimizer(
        "sgd", rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, mask=mask
    )
    result = run(optimizer)
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            d = decay if name == "kernel" or mask == "all" else 0.0
            w, v = w.astype(np.float64), 0.0
            for _ in range(3):
                g = GRADS[module][name] + d * w
                v = momentum * v + g
                w = w - rate * (momentum * v + g if nesterov else v)
            np.testing.assert_allclose(result[module][name], w, rtol=1e-5)


def test_sgd_without_momentum_subtracts_the_gradient():
    result = run(make_optimizer("sgd", 0.1, momentum=0.0), steps=1)
    np.testing.assert_allclose(result["conv"]["kernel"], [0.95, -2.1], rtol=1e-6)


@pytest.mark.slow
def test_adamw_equals_its_recurrence():
    rate, decay, b1, b2, eps = 0.1, 0.01, 0.9, 0.999, 1e-8
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        result = run(make_optimizer("adamw", rate, weight_decay=decay))
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            d = decay if name == "kernel" else 0.0
            w, m, v = w.astype(np.float64), 0.0, 0.0
            g = GRADS[module][name].astype(np.float64)
            for t in range(1, 4):
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                w = w - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + d * w)
            np.testing.assert_allclose(result[module][name], w, rtol=1e-5)


def lars_direction(g, w, *, scaled):
    ratio = 0.001 * np.linalg.norm(w) / np.linalg.norm(g) if scaled else 1.0
    return ratio * g


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_lars_equals_its_recurrence(nesterov, mask):
    """You et al. 2017, algorithm 1: the momentum includes the rate; trust ratio of optax."""
    rate, momentum, decay = 2.0, 0.9, 0.01
    optimizer = make_optimizer(
        "lars", rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, mask=mask
    )
    result = run(optimizer)
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            selected = name == "kernel" or mask == "all"
            w, v = w.astype(np.float64), 0.0
            for _ in range(3):
                g = GRADS[module][name] + (decay * w if selected else 0.0)
                g = rate * lars_direction(g, w, scaled=selected)
                v = momentum * v + g
                w = w - (momentum * v + g if nesterov else v)
            np.testing.assert_allclose(result[module][name], w, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_lamb_equals_its_recurrence(mask):
    """You et al. 2019, algorithm 2."""
    rate, decay, b1, b2, eps = 0.1, 0.01, 0.9, 0.999, 1e-6
    with jax.numpy_dtype_promotion("standard"):
        result = run(make_optimizer("lamb", rate, weight_decay=decay, mask=mask))
    for module, leaves in PARAMS.items():
        for name, w in leaves.items():
            selected = name == "kernel" or mask == "all"
            w, m, v = w.astype(np.float64), 0.0, 0.0
            g = GRADS[module][name].astype(np.float64)
            for t in range(1, 4):
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + (decay * w) * selected
                w = w - rate * u * (np.linalg.norm(w) / np.linalg.norm(u) if selected else 1.0)
            np.testing.assert_allclose(result[module][name], w, rtol=1e-5)


def test_lamb_on_all_parameters_equals_optax_lamb():
    with jax.numpy_dtype_promotion("standard"):
        ours = run(make_optimizer("lamb", 0.1, weight_decay=0.01, mask="all"))
        theirs = run(optax.lamb(0.1, weight_decay=0.01))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_trust_ratio_of_a_zero_kernel_is_not_zero():
    """A ratio of zero would keep the kernel at zero in all later steps."""
    params, grads = {"kernel": jnp.zeros(2)}, {"kernel": jnp.ones(2)}
    for name in ("lars", "lamb"):
        optimizer = make_optimizer(name, 0.1)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
        assert (updates["kernel"] < 0).all()


@pytest.mark.slow
def test_clipping_scales_the_whole_gradient_to_the_norm():
    norm = np.sqrt(0.5**2 + 1 + 1 + 4)
    result = run(make_optimizer("sgd", 1.0, momentum=0.0, grad_clip=0.5), steps=1)
    np.testing.assert_allclose(result["norm"]["bias"], 4 - 2 * 0.5 / norm, rtol=1e-5)
    loose = run(make_optimizer("sgd", 1.0, momentum=0.0, grad_clip=100.0), steps=1)
    np.testing.assert_allclose(loose["norm"]["bias"], 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("adam", "kernels", "unknown optimizer 'adam': did you mean adamw"),
        ("x", "kernels", "unknown optimizer 'x': expected one of sgd, adamw, nadamw, lars, "),
        ("sgd", "bias", "unknown decay_mask 'bias'"),
    ],
)
def test_unknown_optimizers_and_masks_raise_user_errors(name, mask, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(name, 0.1, mask=mask)
