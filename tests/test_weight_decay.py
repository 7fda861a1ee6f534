"""Factors of the weight decay by patterns, against formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import UserError
from resflax.nn import stack_params
from resflax.train import build, default_config, make_optimizer
from resflax.train.optimizers import OPTIMIZERS

RNG = np.random.default_rng(0)
SHAPES = {
    "stem_conv": {"kernel": (3, 3, 1, 4)},
    "stage1_block1": {"conv1": {"kernel": (3, 3, 4, 4)}, "norm1": {"scale": (4,)}},
    "head": {"kernel": (4, 3), "bias": (3,)},
}
FACTORS = (("stem*", 0.0), ("head", 3.0), ("*/bias", 0.5))
RATE, DECAY = 0.1, 0.2


def draw():
    shapes = jax.tree.map(np.float32, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.map(lambda shape: np.float32(RNG.standard_normal(shape.astype(int))), shapes)


PARAMS, GRADS = draw(), [draw() for _ in range(3)]
# The decay of each parameter with `FACTORS`, and all parameters or kernels only.
ALL = {"stem_conv": 0.0, "conv1": 1.0, "norm1": 1.0, "head/kernel": 3.0, "head/bias": 1.5}
KERNELS = ALL | {"norm1": 0.0, "head/bias": 0.0}


def run(optimizer, params=PARAMS, grads=GRADS):
    params = jax.tree.map(jnp.asarray, params)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for gradient in grads:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    return params


def decays(factors):
    """Returns the weight decay of each parameter, as a tree."""

    def decay(path, _):
        name = "/".join(entry.key for entry in path)
        return DECAY * next(factor for key, factor in factors.items() if key in name)

    return jax.tree_util.tree_map_with_path(decay, PARAMS)


def sgd(w, grads, decay):
    """The penalty is part of the gradient: v <- m v + g + d w, w <- w - r v."""
    w, v = np.float64(w), 0.0
    for g in grads:
        v = 0.9 * v + g + decay * w
        w = w - RATE * v
    return w


def adamw(w, grads, decay):
    """Loshchilov and Hutter 2019, algorithm 2."""
    w, m, v = np.float64(w), 0.0, 0.0
    for t, g in enumerate(map(np.float64, grads), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - RATE * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * w)
    return w


@pytest.mark.parametrize(("name", "recurrence"), [("sgd", sgd), ("adamw", adamw)])
@pytest.mark.parametrize(("mask", "factors"), [("all", ALL), ("kernels", KERNELS)])
def test_decay_of_each_parameter_has_its_factor(name, recurrence, mask, factors):
    optimizer = make_optimizer(
        name, RATE, nesterov=False, weight_decay=DECAY, weight_decay_factors=FACTORS, mask=mask
    )
    expected = jax.tree.map(lambda w, d, *g: recurrence(w, g, d), PARAMS, decays(factors), *GRADS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        run(optimizer), expected,
    )  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factor_of_all_parameters_multiplies_the_decay(name):
    """Of optimizers that scale each parameter by itself, so that a factor of 0 is seen too."""
    first, second = (
        run(make_optimizer(name, RATE, weight_decay=decay, weight_decay_factors=factors))
        for decay, factors in ((0.02, (("*", 3.0), ("head", 0.0))), (0.06, ()))
    )
    plain = run(make_optimizer(name, RATE))
    for module in PARAMS:
        expected = plain if module == "head" else second
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            first[module], expected[module],
        )  # fmt: skip


def test_stacked_blocks_have_factors_of_their_own():
    blocks = {
        f"stage1_block{k}": {"conv1": {"kernel": np.float32(RNG.standard_normal((3, 3, 2, 2)))}}
        for k in (1, 2, 3)
    }
    optimizer = make_optimizer(
        "sgd", RATE, momentum=0.0, weight_decay=DECAY,
        weight_decay_factors=(("stage1_block3", 5.0), ("stage1_block1", 0.0)),
    )  # fmt: skip
    stacked = stack_params(blocks)
    zero = jax.tree.map(np.zeros_like, stacked)
    expected = stack_params(
        {
            name: jax.tree.map(lambda w, f=f: w * (1 - RATE * DECAY * f), block)
            for f, (name, block) in zip((0, 1, 5), blocks.items(), strict=True)
        }
    )
    assert stacked.keys() != blocks.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        run(optimizer, stacked, [zero]), expected,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [("stem_conf", {}), ("*/scale", {}), ("head", {"freeze": "head"})],
)
def test_pattern_without_decayed_parameter_is_refused(pattern, keys):
    config = default_config()
    config.model, config.weight_decay_factors = "cifar_resnet8", ((pattern, 0.5),)
    config.update(keys)
    with pytest.raises(
        UserError, match="config.weight_decay_factors '.*' matches no parameter that"
    ):
        build(config)
    if pattern == "*/scale":
        config.decay_mask = "all"
        build(config)
