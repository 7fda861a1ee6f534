"""Orders of norm and activation, against the unrolled blocks of He et al. 2016, figure 4."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.networks import apply, randomized, run, variables_of

from resflax import UserError, create_model
from resflax.inference import apply_graph, build_graph
from resflax.nn import ORDERS, Spec
from resflax.weights import from_torch, to_torch
from resflax.weights.torch_reference import torch_logits

SMALL = Spec((3,), (8,), "basic", "cifar", 8, num_classes=4)
X = np.random.default_rng(0).standard_normal((2, 5, 5, 3)).astype(np.float32)


class Layers:
    """Linen's own layers, with the parameters of one block."""

    def __init__(self, variables, name):
        self.params = variables["params"].get(name, {})
        self.stats = variables["batch_stats"].get(name, {})

    def conv(self, x, i):
        return nn.Conv(8, (3, 3), use_bias=False).apply({"params": self.params[f"conv{i}"]}, x)

    def norm(self, x, i):
        tree = {"params": self.params[f"norm{i}"], "batch_stats": self.stats[f"norm{i}"]}
        return nn.BatchNorm(use_running_average=True).apply(tree, x)


# Blocks as figure 4 has them, with the activation `relu` and `f` the layers of one block.
relu = nn.relu
BLOCKS = {
    "original": lambda f, x: relu(
        x + f.norm(f.conv(relu(f.norm(f.conv(x, 1), 1)), 2), 2)
    ),
    "norm_after_add": lambda f, x: relu(
        f.norm(x + f.conv(relu(f.norm(f.conv(x, 1), 1)), 2), 2)
    ),
    "act_before_add": lambda f, x: (
        x + relu(f.norm(f.conv(relu(f.norm(f.conv(x, 1), 1)), 2), 2))
    ),
    "act_only_preact": lambda f, x: (
        x + f.norm(f.conv(relu(f.norm(f.conv(relu(x), 1), 1)), 2), 2)
    ),
    "preact": lambda f, x: (
        x + f.conv(relu(f.norm(f.conv(relu(f.norm(x, 1)), 1), 2)), 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_block_is_that_of_figure_4(order):
    model = create_model(SMALL.override(order=order))
    variables = randomized(variables_of(model, X.shape))
    kernel = {"params": variables["params"]["stem_conv"]}
    top = {"params": variables["params"], "batch_stats": variables["batch_stats"]}

    def norm(x, name):
        tree = {key: top[key][name] for key in top}
        return nn.BatchNorm(use_running_average=True).apply(tree, x)

    x = nn.Conv(8, (3, 3), use_bias=False).apply(kernel, X)
    x = x if order == "preact" else norm(x, "stem_norm")
    x = x if order.endswith("preact") else relu(x)
    for k in (1, 2, 3):
        x = BLOCKS[order](Layers(variables, f"stage1_block{k}"), x)
    x = relu(norm(x, "head_norm")) if order == "preact" else x
    x = relu(x) if order == "act_only_preact" else x
    head = variables["params"]["head"]
    expected = x.mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(apply(model, variables, X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("norm", ["batch", "frn_tlu"])
def test_inference_form_and_torch_have_the_order(order, norm):
    spec = Spec((1, 2), (4, 8), "basic", "cifar", 4, num_classes=3, order=order, norm=norm)
    model = create_model(spec.override(gate="layer_scale"), scan=False)
    variables = randomized(variables_of(model, X.shape), seed=1)
    expected = apply(model, variables, X)
    graph = build_graph(model.spec, variables)
    y = run(lambda arrays, x: apply_graph(graph, arrays, x), graph.arrays, X)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    pytest.importorskip("torch")
    y = torch_logits(model.spec, variables, X)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    back = from_torch(model.spec, to_torch(model.spec, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_preact_is_one_of_the_orders():
    assert SMALL.override(order="preact") == SMALL.override(preact=True)
    assert SMALL.override(order="original") == SMALL
    with pytest.raises(UserError, match="preact is True, but order is 'original'"):
        SMALL.override(preact=True).override(order="original")
    with pytest.raises(UserError, match="unknown order 'norm_after_ad'"):
        SMALL.override(order="norm_after_ad")


@pytest.mark.parametrize("order", ORDERS)
def test_zero_init_makes_the_branch_zero_unless_relu_ends_it(order):
    """A ReLU of zero would stay zero: its gradient is zero."""
    model = create_model(SMALL.override(order=order))
    params = model.init(jax.random.key(0), X, train=False)["params"]["stage1_block2"]
    last = params["norm2"]["scale"] if ORDERS[order].last else params["conv2"]["kernel"]
    assert (np.abs(last).max() == 0) == (order != "act_before_add")
