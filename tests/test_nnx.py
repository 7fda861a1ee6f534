"""Networks as NNX modules, against the same networks in linen."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.networks import randomized

from resflax import create_model
from resflax.nn import to_nnx

OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def images_and_labels():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((4, 8, 8, 3)), jnp.float32), jnp.arange(4)


def variables_of(model):
    images, _ = images_and_labels()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return randomized(shapes)


def mean_loss(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_linen(model, variables, steps, **inputs):
    """Returns the losses and the variables after some steps of a linen training loop."""
    images, labels = images_and_labels()

    def loss_fn(params, stats):
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"],
            **inputs,
        )  # fmt: skip
        return mean_loss(logits, labels), updates["batch_stats"]

    params, stats = variables["params"], variables["batch_stats"]
    optimizer_state, losses = OPTIMIZER.init(params), []
    for _ in range(steps):
        (loss, stats), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, stats)
        updates, optimizer_state = OPTIMIZER.update(grads, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses, {"params": params, "batch_stats": stats}


def train_nnx(network, steps, **inputs):
    """Returns the losses of some steps of an NNX training loop, which updates `network`."""
    images, labels = images_and_labels()
    optimizer = nnx.Optimizer(network, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer):
        def loss_fn(network):
            return mean_loss(network(images, train=True, **inputs), labels)

        loss, grads = nnx.value_and_grad(loss_fn)(network)
        optimizer.update(network, grads)
        return loss

    return [float(step(network, optimizer)) for _ in range(steps)]


@pytest.mark.parametrize("scan", [False, True])
def test_nnx_inference_equals_linen(scan):
    model = create_model("cifar_resnet14", scan=scan)
    variables, (images, _) = variables_of(model), images_and_labels()
    network = to_nnx(model, variables)
    expected = model.apply(variables, images, train=False)
    np.testing.assert_array_equal(network(images, train=False), expected)
    np.testing.assert_allclose(
        nnx.jit(lambda n, x: n(x, train=False))(network, images), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_nnx_training_equals_linen():
    model = create_model("cifar_resnet8")
    variables, (images, _) = variables_of(model), images_and_labels()
    network = to_nnx(model, variables)
    losses, expected = train_linen(model, variables, 3)
    np.testing.assert_allclose(train_nnx(network, 3), losses, rtol=1e-5)
    assert losses[-1] < losses[0]
    for leaf, kind in (("scale", nnx.Param), ("mean", nnx.BatchStat), ("var", nnx.BatchStat)):
        variable = network.stage1_block1["norm1"][leaf]
        collection = "params" if kind is nnx.Param else "batch_stats"
        before, after = (
            v[collection]["stage1_block1"]["norm1"][leaf] for v in (variables, expected)
        )
        assert type(variable) is kind
        assert np.abs(after - before).max() > 1e-4
        np.testing.assert_allclose(variable[...], after, rtol=1e-4, atol=1e-6)
    outputs = network(images, train=False)
    np.testing.assert_allclose(
        outputs, model.apply(expected, images, train=False), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_nnx_training_takes_dropout_keys():
    model = create_model("cifar_resnet8", drop_path=0.5, dropout=0.5)
    variables = variables_of(model)
    keys = jax.random.split(jax.random.key(1), 4)
    losses, _ = train_linen(model, variables, 1, dropout_keys=keys)
    assert train_nnx(to_nnx(model, variables), 1, dropout_keys=keys) == pytest.approx(losses)


def test_nnx_inference_changes_nothing():
    model = create_model("cifar_resnet8")
    variables, (images, _) = variables_of(model), images_and_labels()
    network = to_nnx(model, {**variables, "num_batches_tracked": {"stem_norm": {"count": 7}}})
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(network)))
    network(images, train=False)
    after = nnx.to_pure_dict(nnx.state(network))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert len(jax.tree.leaves(after)) == len(jax.tree.leaves(variables))


def test_networks_import_no_nnx():
    code = "import sys, resflax.nn, resflax.zoo; print('flax.nnx' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
