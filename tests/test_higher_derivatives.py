"""Derivatives of networks on every CPU backend against float64, and against differences."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.conv_cases import CPU_BACKENDS
from helpers.networks import randomized, run, variables_of

from resflax import create_model
from resflax.kernels import conv_backend

SMALL = {"depths": (1, 1), "widths": (4, 8), "stem_width": 4, "num_classes": 3}
SCANNED = SMALL | {"depths": (3,), "widths": (4,), "scan": True}
FAMILIES = {
    "preact": SMALL | {"preact": True},
    "scan": SCANNED,
    "preact scan": SCANNED | {"preact": True},
    "group norm": {
        "depths": (1,),
        "widths": (32,),
        "stem_width": 32,
        "norm": "group",
        "num_classes": 3,
    },
    "bottleneck": SMALL | {"block": "bottleneck", "depths": (1,), "widths": (8,)},
    "signals": SMALL | {"dimensions": 1, "stem": "imagenet"},
    "volumes": SMALL | {"dimensions": 3, "depths": (1,), "widths": (8,)},
    "clips": SMALL
    | {
        "dimensions": 3,
        "stem": "video_2plus1d",
        "block": "basic_2plus1d",
        "depths": (1,),
        "widths": (8,),
        "shortcut": "B",
    },
}
COUNT = 4
SHAPES = {1: (12, 3), 2: (6, 6, 3), 3: (4, 5, 6, 3)}
STEP = 1e-6  # of the differences
LABELS = np.arange(COUNT) % 3


def family_model(family, dtype):
    return create_model("cifar_resnet20", dtype=dtype, **FAMILIES[family])


def random_inputs(family, dtype):
    """Returns images, variables and a direction of the parameters, the same for each dtype."""
    model = family_model(family, "float32")
    shape = SHAPES[model.spec.dimensions]
    variables = randomized(variables_of(model, (1, *shape)))
    direction = randomized(variables["params"], seed=1)
    image = np.random.default_rng(2).standard_normal((COUNT, *shape)).astype(np.float32)
    return jax.tree.map(lambda x: np.asarray(x, dtype), (image, variables, direction))


def losses(model, variables, params, image, labels, train):
    """Returns the cross-entropy of each example."""
    logits, _ = model.apply(
        {**variables, "params": params}, image, train=train, mutable=["batch_stats"]
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def derivatives(model, image, variables, direction):
    """Returns the gradient, Hessian-vector products in every order, and gradients of each example.

    Batch norm uses the statistics of the batch, but for the gradients of each example.
    """
    params = variables["params"]

    def loss(params):
        return jnp.mean(losses(model, variables, params, image, LABELS, True))

    def moved(t):
        return jax.tree.map(lambda p, d: p + t * d, params, direction)

    def example_loss(params, image, label):
        return losses(model, variables, params, image[None], label[None], False)[0]

    def along(params):
        products = jax.tree.map(jnp.vdot, jax.grad(loss)(params), direction)
        return sum(jax.tree.leaves(products))

    grad, zero = jax.grad(loss), jnp.zeros((), image.dtype)
    return {
        "gradient": grad(params),
        "forward over reverse": jax.jvp(grad, (params,), (direction,))[1],
        "reverse over reverse": jax.grad(along)(params),
        "linearize": jax.linearize(grad, params)[1](direction),
        "jacfwd": jax.jacfwd(lambda t: grad(moved(t)))(zero),
        "per example": jax.vmap(jax.grad(example_loss), (None, 0, 0))(params, image, LABELS),
    }


def differences(model, image, variables, direction):
    """Returns the Hessian-vector product by central differences of gradients."""

    def grad(t):
        params = jax.tree.map(lambda p, d: p + t * d, variables["params"], direction)
        return jax.grad(
            lambda params: jnp.mean(losses(model, variables, params, image, LABELS, True))
        )(params)

    return jax.tree.map(lambda a, b: (a - b) / (2 * STEP), grad(STEP), grad(-STEP))


@cache
def in_float64(family):
    """Returns the derivatives by XLA's convolutions, after a comparison with differences."""
    with jax.enable_x64(True), conv_backend("xla"):
        model, inputs = family_model(family, "float64"), random_inputs(family, np.float64)
        expected, hvp = run(
            lambda *inputs: (derivatives(model, *inputs), differences(model, *inputs)), *inputs
        )
        expected, hvp = jax.tree.map(np.asarray, (expected, hvp))
    assert {leaf.dtype for leaf in jax.tree.leaves(expected)} == {np.dtype("float64")}
    assert_close(expected["forward over reverse"], hvp, 1e-6)
    return expected


def assert_close(actual, expected, tolerance):
    """Compares trees relative to the largest value of each."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert largest > 1e-3
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0, atol=tolerance * largest), actual, expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["xla", *CPU_BACKENDS])
def test_derivatives_of_networks_match_float64(name, family):
    expected = in_float64(family)
    with conv_backend(name):
        model, inputs = family_model(family, "float32"), random_inputs(family, np.float32)
        actual = run(partial(derivatives, model), *inputs)
    for key in expected:
        assert_close(actual[key], expected[key], 2e-4)
