"""Sharpness-aware minimization: against a closed form in float64, on devices, in ensembles."""

import jax
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, NormNet, random_batch, softmax

from resflax.distributed import EnsembleEngine
from resflax.train import (
    create_state,
    make_engine,
    make_optimizer,
    make_train_step,
    stack_states,
)
from resflax.train.averaging import EMA
from resflax.train.optimizers import OPTIMIZERS

SHAPE, RATE, RHO = (2, 2, 1), 0.5, 0.3


def take_steps(optimizer, batch, count=1, model=None, **options):
    model = model or LinearClassifier()
    state = create_state(model, optimizer, 0, SHAPE, ema="ema_decay" in options)
    step = jax.jit(make_train_step(model, optimizer, **options))
    for _ in range(count):
        state, metrics = step(state, batch)
    return state, metrics


def gradient(params, x, y, mask=(1.0, 1.0)):
    """Returns the gradient of softmax regression for kernel and bias, in float64."""
    kernel, bias = params
    error = (softmax(x @ kernel + bias) - y) / len(x)
    return x.T @ error * mask[0], error.sum(0) * mask[1]


def expected_params(state, batch, steps, *, decay=0.0, momentum=0.0, mask=(1.0, 1.0)):
    """Foret et al. 2020, algorithm 1, with SGD: the penalty is not part of the first gradient."""
    x = batch["image"].reshape(len(batch["image"]), -1).astype(np.float64)
    y = np.eye(3)[batch["label"]]
    head = state.params["head"]
    params = [np.asarray(head[name], np.float64) for name in ("kernel", "bias")]
    trace = [np.zeros_like(w) for w in params]
    for _ in range(steps):
        first = gradient(params, x, y, mask)
        norm = np.sqrt(sum((g**2).sum() for g in first))
        nearby = [w + RHO * g / norm for w, g in zip(params, first, strict=True)]
        second = gradient(nearby, x, y, mask)
        penalty = (decay * params[0], 0.0)
        trace = [momentum * v + g + p for v, g, p in zip(trace, second, penalty, strict=True)]
        params = [w - RATE * v for w, v in zip(params, trace, strict=True)]
    return params


def assert_equals(state, expected, **tolerance):
    for name, w in zip(("kernel", "bias"), expected, strict=True):
        np.testing.assert_allclose(state.params["head"][name], w, **tolerance)


CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("grad_accum_steps", [1, 3])
def test_steps_equal_the_closed_form(grad_accum_steps):
    batch = random_batch(12)
    optimizer = make_optimizer(
        "sgd", RATE, momentum=0.9, nesterov=False, weight_decay=0.1, mask="kernels"
    )
    start = create_state(LinearClassifier(), optimizer, 0, SHAPE)
    expected = expected_params(start, batch, 4, decay=0.1, momentum=0.9)
    state, _ = take_steps(
        optimizer, batch, 4, sam_rho=RHO, grad_accum_steps=grad_accum_steps, ema_decay=0.5
    )
    assert_equals(state, expected, **CLOSE)


def test_gradient_and_norm_are_of_trained_parameters():
    optimizer, batch = optax.sgd(RATE), random_batch(12)
    start = create_state(LinearClassifier(), optimizer, 0, SHAPE, freeze=("*/bias",))
    step = make_train_step(LinearClassifier(), optimizer, sam_rho=RHO, freeze=("*/bias",))
    state, _ = jax.jit(step)(start, batch)
    assert_equals(state, expected_params(start, batch, 1, mask=(1.0, 0.0)), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_distance_of_almost_zero_is_the_plain_step(name):
    """At a distance that rounding removes, each optimizer has the bits of its plain step."""
    optimizer, batch = make_optimizer(name, 0.1), random_batch(8, classes=10)
    options = {"model": NormNet(), "ema_decay": EMA(0.9)}
    plain, sam = (
        take_steps(optimizer, batch, 2, **options, sam_rho=rho)[0] for rho in (0.0, 1e-30)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, sam)
    away, _ = take_steps(optimizer, batch, 2, **options, sam_rho=0.5)
    assert (away.params["head"]["kernel"] != plain.params["head"]["kernel"]).any()


def test_metrics_and_statistics_are_of_the_first_pass():
    batch = random_batch(8, classes=10)
    results = [take_steps(optax.sgd(0.1), batch, model=NormNet(), sam_rho=r) for r in (0.0, 2.0)]
    (plain, metrics), (sam, others) = results
    jax.tree.map(np.testing.assert_array_equal, plain.batch_stats, sam.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, metrics, others)


def test_gradient_of_zero_changes_nothing():
    """All logits and images are 0, and so is the gradient of the kernel, without its bias."""
    batch = random_batch(6) | {"image": np.zeros((6, *SHAPE), np.float32)}
    start = create_state(LinearClassifier(), optax.sgd(RATE), 0, SHAPE, freeze=("*/bias",))
    step = make_train_step(LinearClassifier(), optax.sgd(RATE), sam_rho=RHO, freeze=("*/bias",))
    state, _ = step(start, batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)


@pytest.mark.parametrize(
    ("parallel", "fsdp"), [("pmap", 1), ("mesh", 1), ("mesh", 2), ("shard_map", 1)]
)
def test_eight_devices_have_the_gradient_of_the_global_batch(parallel, fsdp):
    optimizer, batch = optax.sgd(RATE), random_batch(48)
    engine = make_engine(parallel, fsdp=fsdp)
    start = create_state(LinearClassifier(), optimizer, 0, SHAPE)
    step = engine.compile_train(
        make_train_step(
            LinearClassifier(), optimizer, sam_rho=RHO, grad_accum_steps=2,
            axis_name=engine.axis_name,
        )
    )  # fmt: skip
    state = engine.put_state(start)
    for _ in range(2):
        state, _ = step(state, engine.shard_batch(batch))
    assert_equals(engine.to_host(state), expected_params(start, batch, 2), **CLOSE)


def test_members_have_a_norm_of_their_own():
    optimizer, batch = optax.sgd(RATE), random_batch(16)
    starts = [create_state(LinearClassifier(), optimizer, seed, SHAPE) for seed in range(4)]
    engine = EnsembleEngine(jax.devices()[:4], 4, member_devices=2, method="vmap")
    step = make_train_step(LinearClassifier(), optimizer, sam_rho=RHO, axis_name=engine.axis_name)
    state, _ = engine.compile_train(step)(
        engine.put_state(jax.device_get(stack_states(starts))), engine.shard_batch(batch)
    )
    result = engine.to_host(state)
    for k, start in enumerate(starts):
        member = jax.tree.map(lambda x, k=k: x[k], result)
        assert_equals(member, expected_params(start, batch, 1), **CLOSE)
