"""The rows of `NORMS` against their papers' equations, in NumPy and float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import assert_close
from helpers.networks import randomized, run, variables_of

from resflax import create_model
from resflax.nn.convs import CONVS
from resflax.nn.layers import make_ops
from resflax.nn.norms import NORMS

SHAPE = (3, 4, 5, 64)
RNG = np.random.default_rng(0)
X = 2 * RNG.standard_normal(SHAPE) + RNG.standard_normal(64)
SCALE, BIAS, V, TAU = RNG.uniform(0.5, 1.5, 64), *RNG.standard_normal((3, 64))
PARAMS = {"scale": SCALE, "bias": BIAS, "v": V, "tau": TAU}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def group_moments(x):
    """Returns mean and variance over pixels and channels of each of 32 channel groups."""
    n, height, width, channels = x.shape
    groups = x.reshape(n, height, width, 32, channels // 32)
    mean, var = groups.mean((1, 2, 4)), groups.var((1, 2, 4))
    per_channel = partial(np.repeat, repeats=channels // 32, axis=-1)
    return per_channel(mean)[:, None, None], per_channel(var)[:, None, None]


def group_norm(x):
    """Wu and He 2018, eq. 1 and 2."""
    mean, var = group_moments(x)
    return (x - mean) / np.sqrt(var + 1e-5) * SCALE + BIAS


def evonorm_s0(x):
    """Liu et al. 2020, table 2: x sigmoid(v x) / std * gamma + beta."""
    _, var = group_moments(x)
    return x * sigmoid(V * x) / np.sqrt(var + 1e-5) * SCALE + BIAS


def frn(x):
    """Singh and Krishnan 2019, eq. 1 and 2: over pixels, per channel and image."""
    return x / np.sqrt((x**2).mean((1, 2), keepdims=True) + 1e-5) * SCALE + BIAS


# Each norm with its activation, and without.
REFERENCES = {
    "group": (lambda x: np.maximum(group_norm(x), 0), group_norm),
    "evonorm_s0": (evonorm_s0, lambda x: x * SCALE + BIAS),
    "frn_tlu": (lambda x: np.maximum(frn(x), TAU), frn),
}
every_norm = pytest.mark.parametrize("norm", REFERENCES)


class Norm(nn.Module):
    """A row of `NORMS` as a module, made by `make_ops`."""

    norm: str
    act: bool
    dtype: type = jnp.float32
    zero: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, x):
        ops = make_ops(train=self.train, dtype=self.dtype, norm=NORMS[self.norm])
        if self.act:
            return ops.norm_act(x, name="norm")
        return ops.norm(x, name="norm", zero=self.zero)


def variables(norm):
    tree = jax.eval_shape(lambda: norm.init(jax.random.key(0), jnp.zeros(SHAPE, norm.dtype)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(PARAMS[path[-1].key], leaf.dtype), tree
    )


@every_norm
@pytest.mark.parametrize("act", [True, False])
def test_norm_is_its_papers_equation(norm, act):
    module = Norm(norm, act)
    y = run(module.apply, variables(module), jnp.asarray(X, jnp.float32))
    assert_close(y, REFERENCES[norm][not act](X), 1e-6)


@every_norm
@pytest.mark.parametrize("act", [True, False])
def test_half_precision_is_within_its_rounding_error(norm, act):
    module = Norm(norm, act, jnp.bfloat16)
    x = jnp.asarray(X, jnp.bfloat16)
    y = run(module.apply, variables(module), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables(module))} == {jnp.dtype("float32")}
    assert_close(y, REFERENCES[norm][not act](np.asarray(x, np.float64)), 2**-8)


@pytest.mark.slow
@every_norm
def test_batchless_norms_treat_each_image_independently(norm):
    module = Norm(norm, act=True, train=True)
    apply = jax.jit(module.apply)
    batch = apply(variables(module), jnp.asarray(X, jnp.float32))
    assert set(variables(module)) == {"params"}
    for i, image in enumerate(X):
        single = apply(variables(module), jnp.asarray(image[None], jnp.float32))
        assert_close(single[0], batch[i], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
def test_initial_norm_is_neutral_or_zero(norm):
    x = jnp.asarray(X, jnp.float32)
    for zero in (False, True):
        module = Norm(norm, act=False, zero=zero)
        start = module.init(jax.random.key(0), x)
        leaves = {"scale": 1 - zero, "bias": 0, "mean": 0, "var": 1}
        for path, leaf in jax.tree_util.tree_leaves_with_path(start):
            assert (leaf == leaves[path[-1].key]).all()
        if zero:
            assert not np.asarray(module.apply(start, x)).any()
    params = Norm(norm, act=True).init(jax.random.key(0), x)["params"]["norm"]
    extra = {"evonorm_s0": {"v": 1}, "frn_tlu": {"tau": 0}}.get(norm, {})
    assert params.keys() == {"scale", "bias", *extra}
    assert all((params[leaf] == value).all() for leaf, value in extra.items())


def test_standardized_kernels_have_mean_0_and_variance_1():
    """Qiao et al. 2019, eq. 5: standardizes the kernel of each output channel."""

    class Convolution(nn.Module):
        @nn.compact
        def __call__(self, x):
            ops = make_ops(train=False, dtype=x.dtype, conv=CONVS["standardized"])
            return ops.conv(x, 5, 3, name="conv")

    x, kernel = RNG.standard_normal((2, 6, 7, 4)), 3 + RNG.standard_normal((3, 3, 4, 5))
    y = run(
        Convolution().apply,
        {"params": {"conv": {"kernel": jnp.asarray(kernel, jnp.float32)}}},
        jnp.asarray(x, jnp.float32),
    )
    mean, var = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
    standardized = (kernel - mean) / np.sqrt(var + 1e-8)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    assert_close(y, np.einsum("nhwcij,ijco->nhwo", windows, standardized))


@pytest.mark.slow
@every_norm
def test_bfloat16_network_of_each_norm_has_finite_gradients(norm):
    model = create_model(
        "resnetv2_50", depths=(1,), widths=(32,), stem_width=32, norm=norm, dtype="bfloat16",
        num_classes=3, zero_init=False,
    )  # fmt: skip
    tree = randomized(variables_of(model, (1, 32, 32, 3)))
    x = jnp.asarray(RNG.standard_normal((2, 32, 32, 3)), jnp.float32)

    def loss(params):
        logits, _ = model.apply({**tree, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.square(logits.astype(jnp.float32)))

    value, gradient = run(jax.value_and_grad(loss), tree["params"])
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.asarray(leaf).any(), path
