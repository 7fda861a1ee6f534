"""Optimizers that take more than the gradient: the loss, and functions of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.modules import LinearClassifier, NormNet, random_batch

from resflax.train import create_state, make_engine, make_train_step

SHAPE = (2, 2, 1)
DIRECT = optax.adam(0.1)
OPTIMIZERS = {
    "sam": optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), opaque_mode=True
    ),
    "line_search": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(4, store_grad=True)
    ),
    "polyak": optax.chain(optax.clip_by_global_norm(1.0), optax.polyak_sgd(max_learning_rate=1.0)),
    "plateau": optax.chain(DIRECT, optax.contrib.reduce_on_plateau(rtol=1e-3, accumulation_size=2)),
    "schedule_free": optax.contrib.schedule_free(optax.sgd(0.5), 0.5),
}


def mean_loss(params, batch):
    x = batch["image"].reshape(len(batch["image"]), -1)
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def take_steps(name, params, batch, count):
    """Returns the parameters after some steps of optax's own loop."""
    optimizer, opt_state = OPTIMIZERS[name], OPTIMIZERS[name].init(params)

    @jax.jit
    def update(params, opt_state):
        def loss(params):
            return mean_loss(params, batch)

        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grads, "value_fn": loss}
        if name == "sam":
            extra = {"grad_fn": lambda params, i: jax.grad(loss)(params)}
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(
                grads, opt_state, params, **({} if name == "schedule_free" else extra)
            )
        return optax.apply_updates(params, updates), opt_state

    for _ in range(count):
        params, opt_state = update(params, opt_state)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_get_the_arguments_of_optax(name):
    """The updates are those of a loop around optax; for SAM also with micro-batches."""
    model, optimizer, batch = LinearClassifier(), OPTIMIZERS[name], random_batch(8)
    state = create_state(model, optimizer, 0, SHAPE)
    expected, count = take_steps(name, state.params, batch, 3), 1 + (name == "sam")
    step = jax.jit(make_train_step(model, optimizer, grad_accum_steps=count))
    for _ in range(3):
        state, _ = step(state, batch)
    for a, b in zip(*map(jax.tree.leaves, (state.params, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("parallel", "name"), [("pmap", "sam"), ("shard_map", "sam"), ("shard_map", "line_search")]
)
def test_arguments_are_of_the_global_batch(parallel, name):
    model, optimizer, batch = LinearClassifier(), OPTIMIZERS[name], random_batch(16)
    state = create_state(model, optimizer, 0, SHAPE)
    expected, _ = jax.jit(make_train_step(model, optimizer))(state, batch)
    engine = make_engine(parallel)
    step = engine.compile_train(make_train_step(model, optimizer, axis_name=engine.axis_name))
    new, _ = step(engine.put_state(state), engine.shard_batch(batch))
    for a, b in zip(*map(jax.tree.leaves, (engine.to_host(new), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_further_gradients_leave_batch_statistics_alone():
    """The statistics are those of the first pass, as where SAM's authors use PyTorch."""
    batch, plain = random_batch(8, classes=10), optax.sgd(0.1)
    results = [
        jax.jit(make_train_step(NormNet(), optimizer))(
            create_state(NormNet(), optimizer, 0, SHAPE), batch
        )
        for optimizer in (plain, OPTIMIZERS["sam"])
    ]
    (a, metrics), (b, others) = results
    jax.tree.map(np.testing.assert_array_equal, a.batch_stats, b.batch_stats)
    assert metrics["loss"] == others["loss"]
    assert jnp.abs(a.params["head"]["kernel"] - b.params["head"]["kernel"]).max() > 1e-4
