"""Parameters and floating-point operations of shortcuts, as counted by XLA."""

import jax
import jax.numpy as jnp
import pytest

from resflax import create_model
from resflax.kernels.backend import conv_backend


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.fixture
def xla_convolutions():
    """Uses XLA's convolutions, whose operations XLA can count."""
    with conv_backend("xla"):
        yield


def cost(name, size=32, **overrides):
    """Returns parameters and floating-point operations of one forward pass."""
    model = create_model(name, **overrides)
    x = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, x)
    return count(variables["params"]), lowered.cost_analysis()["flops"]


@pytest.mark.slow
def test_identity_shortcuts_cost_one_addition_per_element(xla_convolutions):
    """cifar_resnet20 has nine additions: 3 x 32*32*16, 3 x 16*16*32, 3 x 8*8*64."""
    plain_params, plain_flops = cost("cifar_plain20")
    residual_params, residual_flops = cost("cifar_resnet20")
    assert residual_params == plain_params
    assert residual_flops - plain_flops == 3 * (32 * 32 * 16 + 16 * 16 * 32 + 8 * 8 * 64)


@pytest.mark.slow
def test_projections_cost_products_only_where_shapes_differ(xla_convolutions):
    """Option B adds two 1x1 projections and their norms to option A in cifar_resnet20."""
    a_params, a_flops = cost("cifar_resnet20", shortcut="A")
    b_params, b_flops = cost("cifar_resnet20", shortcut="B")
    assert b_params - a_params == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    products = 2 * (16 * 16 * 16 * 32 + 8 * 8 * 32 * 64)
    norms = b_flops - a_flops - products
    assert 0 < norms < 8 * (16 * 16 * 32 + 8 * 8 * 64)


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 2), ("C", 9), ("none", 0)])
def test_projection_count_per_shortcut_option(shortcut, projections):
    model = create_model("cifar_resnet20", shortcut=shortcut)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    )
    assert sum("Ws" in block for block in variables["params"].values()) == projections


def test_first_block_projects_in_resnet50_not_in_resnet18():
    for name, projections in (("resnet18", 3), ("resnet50", 4), ("plain18", 0)):
        model = create_model(name)
        variables = jax.eval_shape(
            lambda m=model: m.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
        )
        blocks = [block for block, tree in variables["params"].items() if "Ws" in tree]
        assert len(blocks) == projections
        assert ("stage1_block1" in blocks) == (name == "resnet50")
