"""Rows of the table of optimizers, against timm, torch and formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resflax import UserError
from resflax.nn import stack_params
from resflax.train import make_optimizer
from resflax.train.optimizers import OPTIMIZERS, default_betas, users_of

RNG = np.random.default_rng(0)


def draw(shape):
    return RNG.standard_normal(shape).astype(np.float32)


SHAPES = {
    "stem_conv": {"kernel": (3, 3, 3, 4)},
    "stage1_block1": {"conv1": {"kernel": (3, 3, 4, 6)}, "norm1": {"scale": (6,)}},
    "head": {"kernel": (6, 3), "bias": (3,)},
}
PARAMS = jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
GRADS = [jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple)) for _ in range(4)]


def run(optimizer, params=PARAMS, grads=GRADS):
    """Returns the parameters after one step per gradient, and the state."""
    params = jax.tree.map(jnp.asarray, params)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for gradient in grads:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    return params, state


# Ours, the constructor of timm or torch, and its arguments.
THEIRS = {
    "adamw": ("torch.optim", "AdamW", {"lr": 0.1, "weight_decay": 0.02}),
    "lion": ("timm.optim.lion", "Lion", {"lr": 0.1, "weight_decay": 0.02}),
    "rmsprop": (
        "timm.optim.rmsprop_tf", "RMSpropTF", {"lr": 0.1, "weight_decay": 0.02, "momentum": 0.9},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("with_constants", [False, True])
def test_steps_equal_those_of_timm_or_torch(name, with_constants):
    torch = pytest.importorskip("torch")
    module, constructor, arguments = THEIRS[name]
    constructor = getattr(pytest.importorskip(module), constructor)
    ours = {}
    if with_constants:
        betas = tuple(beta - 0.05 for beta in default_betas(name))
        ours["betas"] = betas
        decay = {"alpha": betas[0]} if name == "rmsprop" else {"betas": betas}
        arguments = arguments | decay
        if name in users_of("eps"):
            ours["eps"] = arguments["eps"] = 1e-3
    expected = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in jax.tree.leaves(PARAMS)]
    theirs = constructor(expected, **arguments)
    for gradient in GRADS:
        for parameter, g in zip(expected, jax.tree.leaves(gradient), strict=True):
            parameter.grad = torch.from_numpy(g.copy())
        theirs.step()
    optimizer = make_optimizer(name, 0.1, weight_decay=0.02, mask="all", momentum=0.9, **ours)
    params, _ = run(optimizer)
    for a, b in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=2e-4, atol=2e-5)


def test_nadamw_equals_its_recurrence():
    """Dozat 2016: the first moment looks one step ahead, both biases are corrected."""
    rate, decay, b1, b2, eps = 0.1, 0.02, 0.8, 0.95, 1e-3
    optimizer = make_optimizer("nadamw", rate, weight_decay=decay, betas=(b1, b2), eps=eps)
    params, _ = run(optimizer)
    w = np.float64(PARAMS["head"]["kernel"])
    m = v = 0.0
    for t, gradient in enumerate(GRADS, 1):
        g = np.float64(gradient["head"]["kernel"])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        w = w - rate * (ahead / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w)
    np.testing.assert_allclose(params["head"]["kernel"], w, rtol=1e-4, atol=1e-5)


def newton_schulz(matrix):
    """Five steps of Muon's quintic iteration, in float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_step_is_orthogonal_and_as_long_as_one_of_adamw():
    """Kernels as matrices of all inputs by the outputs, in float64, with Nesterov momentum."""
    optimizer = make_optimizer("muon", 0.1, momentum=0.8, weight_decay=0.02)
    params, _ = run(optimizer)
    w = np.float64(PARAMS["stage1_block1"]["conv1"]["kernel"]).reshape(36, 6)
    m = np.zeros_like(w)
    for t, gradient in enumerate(GRADS, 1):
        g = np.float64(gradient["stage1_block1"]["conv1"]["kernel"]).reshape(36, 6)
        m = 0.8 * m + 0.2 * g
        # As optax corrects the biases of the two parts.
        nesterov = 0.8 * m / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)
        update = newton_schulz(nesterov)
        singular_values = np.linalg.svd(update, compute_uv=False)
        assert 0.6 < singular_values.min() < singular_values.max() < 1.3
        w = w - 0.1 * (0.2 * np.sqrt(36) * update + 0.02 * w)
    kernel = params["stage1_block1"]["conv1"]["kernel"]
    np.testing.assert_allclose(np.reshape(kernel, (36, 6)), w, rtol=1e-4, atol=1e-4)


def test_muon_updates_all_but_kernels_of_blocks_by_adamw():
    numbers = {"weight_decay": 0.02, "betas": (0.8, 0.95), "eps": 1e-4}
    muon, adamw = (run(make_optimizer(name, 0.1, **numbers))[0] for name in ("muon", "adamw"))
    for path in (("stem_conv", "kernel"), ("head", "kernel"), ("head", "bias")):
        a, b = (tree[path[0]][path[1]] for tree in (muon, adamw))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    norms = [tree["stage1_block1"]["norm1"]["scale"] for tree in (muon, adamw)]
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_muon_steps_of_stacked_blocks_are_those_of_each_block():
    blocks = {f"stage1_block{i}": SHAPES["stage1_block1"] for i in (1, 2, 3)}
    trees = [
        jax.tree.map(draw, {**SHAPES, **blocks}, is_leaf=lambda x: isinstance(x, tuple))
        for _ in range(3)
    ]
    expected, _ = run(make_optimizer("muon", 0.1), trees[0], trees[1:])
    stacked = [stack_params(tree) for tree in trees]
    params, _ = run(make_optimizer("muon", 0.1), stacked[0], stacked[1:])
    assert "stage1_rest" in params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        params,
        stack_params(expected),
    )


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_equals_its_recurrence(name):
    """Defazio et al. 2024, equations 3 to 5, with weights of the squared learning rate."""
    rate, beta, decay = 0.1, 0.8, 0.02
    numbers = {"momentum": beta} if name.endswith("sgd") else {"betas": (beta, 0.99)}
    optimizer = make_optimizer(name, rate, weight_decay=decay, mask="all", **numbers)
    params, state = run(optimizer)
    averages = optax.contrib.schedule_free_eval_params(state, params)
    for path, w in jax.tree_util.tree_leaves_with_path(PARAMS):
        z = x = y = np.float64(w)
        v = 0.0
        for t, gradient in enumerate(GRADS, 1):
            (g,) = (g for p, g in jax.tree_util.tree_leaves_with_path(gradient) if p == path)
            g = np.float64(g)
            if name.endswith("adamw"):
                v = 0.99 * v + 0.01 * g**2
                g = g / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
            z = z - rate * (g + decay * y)
            x = (1 - 1 / t) * x + z / t
            y = (1 - beta) * z + beta * x
        for tree, expected in ((params, y), (averages, x)):
            (value,) = (a for p, a in jax.tree_util.tree_leaves_with_path(tree) if p == path)
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_applies_to_the_masked_parameters_only(name):
    zero = [jax.tree.map(np.zeros_like, PARAMS)]
    params, _ = run(make_optimizer(name, 0.1, weight_decay=0.5), grads=zero)
    unchanged = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5), params, PARAMS)
    assert unchanged == {
        "stem_conv": {"kernel": False},
        "stage1_block1": {"conv1": {"kernel": False}, "norm1": {"scale": True}},
        "head": {"kernel": False, "bias": True},
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_lowers_a_quadratic_loss(name):
    """|w|^2 / 2, whose gradient is w: a step of the wrong sign would raise it."""
    optimizer = make_optimizer(name, 1e-3)
    params = jax.tree.map(jnp.asarray, PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
    before, after = (sum(float((x**2).sum()) for x in jax.tree.leaves(t)) for t in (PARAMS, params))
    assert after < before


def test_betas_of_another_number_raise_user_errors():
    with pytest.raises(UserError, match="rmsprop has 1: expected values such as .0.9,"):
        make_optimizer("rmsprop", 0.1, betas=(0.9, 0.999))


def test_scales_after_a_schedule_free_optimizer_scale_its_steps():
    """Not the movement of the parameters, which are no longer an average then."""
    halved = make_optimizer("schedule_free_sgd", 0.2, after=[optax.scale(0.5)])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        run(halved)[0],
        run(make_optimizer("schedule_free_sgd", 0.1))[0],
    )
