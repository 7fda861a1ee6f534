"""How a block combines shortcut and branch, against the formulas of the papers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import apply, randomized, run, variables_of

from resflax import UserError, create_model
from resflax.inference import apply_graph, build_graph
from resflax.nn import GATES, Residual, Spec, identity, stack_params, zero_pad
from resflax.nn.drop import block_keys, drop_path, dropout
from resflax.nn.gates import exclusive
from resflax.weights import from_torch, to_torch
from resflax.weights.torch_reference import torch_logits

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 3, 3, 4)).astype(np.float32)


def branch(h):
    return 3 * h + 1


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gate_params(variables):
    return {k: np.asarray(v, np.float64) for k, v in variables["params"]["gate"].items()}


def linear(h, p):
    return h @ p["kernel"] + p.get("bias", 0.0)


# The sum of shortcut `s` and branch `y` for each row, in evaluation, as the papers write it.
FORMULAS = {
    "none": lambda h, y, s, p: s + y,
    "scaled_shortcut": lambda h, y, s, p: 0.5 * s + y,
    "scaled": lambda h, y, s, p: 0.5 * s + 0.5 * y,
    "exclusive": lambda h, y, s, p: (1 - sigmoid(linear(h, p))) * s + sigmoid(linear(h, p)) * y,
    "shortcut_only": lambda h, y, s, p: (1 - sigmoid(linear(h, p))) * s + y,
    "conv": lambda h, y, s, p: linear(s, p) + y,
    "dropout": lambda h, y, s, p: s + y,
    "drop_path": lambda h, y, s, p: s + y,
    "rezero": lambda h, y, s, p: s + p["scale"] * y,
    "skipinit": lambda h, y, s, p: s + p["scale"] * y,
    "layer_scale": lambda h, y, s, p: s + p["scale"] * y,
    "fixup": lambda h, y, s, p: s + p["scale"] * y,
    "normalizer_free": lambda h, y, s, p: s + 0.2 * y,
}
FORMULAS["exclusive_open"] = FORMULAS["exclusive"]
FORMULAS["shortcut_only_open"] = FORMULAS["shortcut_only"]
# The first value of the gate's bias or scale, and the numbers of its parameters for 4 channels.
STARTS = {
    "exclusive": (-6, 20), "exclusive_open": (0, 20), "shortcut_only": (-6, 20),
    "shortcut_only_open": (0, 20), "conv": (None, 16), "rezero": (0, 1), "skipinit": (0, 1),
    "layer_scale": (1e-5, 4), "fixup": (1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_block_computes_the_formula_of_its_gate(name):
    block = Residual(branch, gate=name, pre=jnp.tanh, post=identity)
    variables = block.init(jax.random.key(0), X)
    params = gate_params(variables) if variables else {}
    start, size = STARTS.get(name, (None, 0))
    assert sum(v.size for v in params.values()) == size
    if start is not None:
        leaf = params.get("bias", params.get("scale"))
        np.testing.assert_allclose(leaf, np.full(leaf.shape, start), rtol=1e-6)
    if variables:
        variables = randomized(variables)
        params = gate_params(variables)
    h = np.tanh(X.astype(np.float64))
    expected = FORMULAS[name](h, branch(h), X, params)
    np.testing.assert_allclose(block.apply(variables, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["exclusive", GATES["exclusive"], exclusive(-6.0)])
def test_gate_is_a_name_a_row_or_a_call(gate):
    block = Residual(branch, gate=gate)
    variables = block.init(jax.random.key(0), X)
    expected = Residual(branch, gate="exclusive").apply(variables, X)
    np.testing.assert_array_equal(block.apply(variables, X), expected)


def test_gate_is_a_function():
    block = Residual(branch, gate=lambda h, y, s: s - y, post=identity)
    np.testing.assert_allclose(block.apply({}, X), X - branch(X), rtol=1e-6)


def test_gate_follows_the_shortcut_to_another_shape():
    block = Residual(lambda h: jnp.ones((5, 2, 2, 6)), zero_pad, gate="exclusive", post=identity)
    variables = randomized(block.init(jax.random.key(0), X))
    g = sigmoid(linear(X[:, ::2, ::2], gate_params(variables)))
    padded = np.pad(X[:, ::2, ::2], [(0, 0)] * 3 + [(1, 1)])
    np.testing.assert_allclose(block.apply(variables, X), (1 - g) * padded + g, rtol=1e-5)


def test_dropping_gates_draw_from_each_key():
    keys = jax.random.split(jax.random.key(3), 5)
    args = ({}, X, None, None, keys)
    y = Residual(branch, gate="dropout", post=identity).apply(*args)
    np.testing.assert_allclose(y, dropout(keys, X, 0.5) + branch(X), rtol=1e-6)
    y = Residual(branch, gate="drop_path", post=identity).apply(*args)
    scale = drop_path(keys, [0.5])[0].reshape(5, 1, 1, 1)
    assert {*np.unique(scale)} == {0.0, 2.0}
    np.testing.assert_allclose(y, X + scale * branch(X), rtol=1e-6)


def test_block_keys_differ_between_blocks_and_examples():
    keys = block_keys(jax.random.split(jax.random.key(0), 3), 4)
    data = jax.random.key_data(keys).reshape(12, -1)
    assert keys.shape == (4, 3)
    assert len({tuple(row) for row in data.tolist()}) == 12


def test_gate_without_shortcut_is_refused():
    with pytest.raises(ValueError, match="has no shortcut"):
        Residual(branch, None, gate="rezero").apply({}, X)
    with pytest.raises(UserError, match="gate is 'rezero', but shortcut is 'none'"):
        Spec((1,), (8,), "basic", "cifar", 8, shortcut="none", gate="rezero")
    with pytest.raises(UserError, match="unknown gate 'rezro'.*rezero"):
        Residual(branch, gate="rezro").apply({}, X)
    with pytest.raises(UserError, match="whose gates would mix them"):
        create_model("cifar_resnet8", gate="conv", ensemble="packed", members=2, alpha=2.0)


SMALL = Spec((3,), (8,), "basic", "cifar", 8, zero_init=False, num_classes=4)


@pytest.mark.parametrize("name", ["exclusive", "dropout", "normalizer_free"])
def test_scanned_and_rematerialized_networks_agree(name):
    spec, x = SMALL.override(gate=name), X[..., :3]
    plain = create_model(spec)
    variables = randomized(variables_of(plain, x.shape))
    keys = jax.random.split(jax.random.key(1), 5) if plain.needs_rng else None

    def outputs(model, v):
        def f(v, x):
            return model.apply(v, x, train=True, dropout_keys=keys, mutable=["batch_stats"])[0]

        return run(f, v, x)

    expected = outputs(plain, variables)
    scanned = outputs(create_model(spec, scan=True, remat=True), stack_params(variables))
    np.testing.assert_allclose(scanned, expected, rtol=1e-4, atol=1e-5)
    if keys is not None:
        assert np.abs(expected - outputs(create_model(SMALL), variables)).max() > 1e-3


def test_network_applies_its_gate_in_every_block():
    """Three blocks, unrolled in linen."""
    model = create_model(SMALL.override(gate="scaled"))
    variables = randomized(variables_of(model, (2, 3, 3, 3)))
    p, stats = variables["params"], variables["batch_stats"]

    def conv_norm(x, name, i):
        conv = nn.Conv(8, (3, 3), use_bias=False)
        x = conv.apply({"params": p[name][f"conv{i}"]}, x)
        norm = {"params": p[name][f"norm{i}"], "batch_stats": stats[name][f"norm{i}"]}
        return nn.BatchNorm(use_running_average=True).apply(norm, x)

    x = X[:2, :, :, :3]
    h = nn.Conv(8, (3, 3), use_bias=False).apply({"params": p["stem_conv"]}, x)
    norm = {"params": p["stem_norm"], "batch_stats": stats["stem_norm"]}
    h = nn.relu(nn.BatchNorm(use_running_average=True).apply(norm, h))
    for k in (1, 2, 3):
        name = f"stage1_block{k}"
        h = nn.relu(0.5 * h + 0.5 * conv_norm(nn.relu(conv_norm(h, name, 1)), name, 2))
    expected = h.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(apply(model, variables, x), expected, rtol=1e-4, atol=1e-5)


DEEP = Spec((1, 2), (4, 8), "basic", "cifar", 4, num_classes=3)
DEPENDENT = [name for name, row in GATES.items() if row.factors is None]


@pytest.mark.parametrize("name", [name for name in GATES if name not in DEPENDENT])
def test_inference_form_has_the_gate(name):
    model = create_model(DEEP.override(gate=name, attention="se"), scan=False)
    variables = randomized(variables_of(model, (2, 8, 8, 3)))
    x = RNG.standard_normal((2, 8, 8, 3)).astype(np.float32)
    graph = build_graph(model.spec, variables)
    y = run(lambda arrays, x: apply_graph(graph, arrays, x), graph.arrays, x)
    np.testing.assert_allclose(y, apply(model, variables, x), rtol=1e-4, atol=1e-5)


def test_gates_of_the_image_are_predicted_with_as_one_network():
    assert DEPENDENT == [
        "exclusive", "exclusive_open", "shortcut_only", "shortcut_only_open", "conv"
    ]  # fmt: skip
    for name in DEPENDENT:
        model = create_model(DEEP.override(gate=name), scan=False)
        graph = build_graph(model.spec, randomized(variables_of(model, (1, 8, 8, 3))))
        assert "network" in [node.op for node in graph.nodes]


@pytest.mark.parametrize("name", GATES)
def test_torch_computes_the_same_and_weights_survive(name):
    pytest.importorskip("torch")
    model = create_model(DEEP.override(gate=name), scan=False)
    variables = randomized(variables_of(model, (1, 8, 8, 3)))
    x = RNG.standard_normal((1, 8, 8, 3)).astype(np.float32)
    expected = torch_logits(model.spec, variables, x)
    np.testing.assert_allclose(apply(model, variables, x), expected, rtol=1e-4, atol=1e-5)
    back = from_torch(model.spec, to_torch(model.spec, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
