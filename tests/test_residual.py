"""The residual block on vectors and images, under every JAX transform."""

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from resflax.nn import Residual, identity, linear_projection, zero_pad


def two_layers(features, hidden=16, zero=False):
    """Returns F = W2 relu(W1 x), the paper's example; `zero` initializes W2 to zero."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()

    def branch(x):
        h = nn.relu(nn.Dense(hidden, use_bias=False, name="W1")(x))
        return nn.Dense(features, use_bias=False, kernel_init=init, name="W2")(h)

    return branch


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


@pytest.mark.slow
def test_residual_is_the_formula_in_float64():
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    for features in (8, 6):
        block = Residual(two_layers(features))
        variables = block.init(jax.random.key(1), x)
        W = {k: np.asarray(v["kernel"], np.float64) for k, v in variables["params"].items()}
        shortcut = x @ W["Ws"] if features != 8 else x
        expected = np.maximum(np.maximum(x @ W["W1"], 0) @ W["W2"] + shortcut, 0)
        np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_parameters_include_ws_only_where_widths_differ():
    block = Residual(two_layers(8))
    same = block.init(jax.random.key(0), jnp.ones((2, 8)))
    assert shapes(same) == {"params": {"W1": {"kernel": (8, 16)}, "W2": {"kernel": (16, 8)}}}
    differ = block.init(jax.random.key(0), jnp.ones((2, 7)))
    assert shapes(differ["params"]) == {
        "W1": {"kernel": (7, 16)},
        "W2": {"kernel": (16, 8)},
        "Ws": {"kernel": (7, 8)},
    }


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_block_with_zero_w2_is_relu_bit_for_bit(jit):
    x = jax.random.normal(jax.random.key(0), (64, 32))
    block = Residual(two_layers(32, zero=True))
    variables = block.init(jax.random.key(1), x)
    apply = jax.jit(block.apply) if jit else block.apply
    assert np.asarray(apply(variables, x)).tobytes() == np.asarray(nn.relu(x)).tobytes()


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(rank=st.integers(1, 4), same=st.booleans(), always=st.booleans(), stride=st.integers(1, 3))
def test_ws_exists_only_where_shapes_differ_for_any_rank(rank, same, always, stride):
    shape = (7,) * (rank - 1) + (3,)
    x = jnp.ones(shape)

    def branch(x):
        return x if same else nn.Dense(5)(x[(slice(None, None, stride),) * (rank - 1)])

    variables = Residual(branch, always=always).init(jax.random.key(0), x)
    assert ("Ws" in variables.get("params", {})) == (always or not same)
    assert Residual(branch, always=always).apply(variables, x).shape == branch_shape(branch, x)


def branch_shape(branch, x):
    return jax.eval_shape(
        lambda x: nn.Sequential([branch]).init_with_output(jax.random.key(0), x)[0], x
    ).shape


def test_pre_applies_to_branch_and_projection_not_to_identity():
    x = jnp.asarray([[-1.0, 2.0]])
    inputs = []

    def branch(h):
        inputs.append(h)
        return 10 * h

    def shortcut(h, shape):
        inputs.append(h)
        return h

    y = Residual(branch, shortcut, pre=nn.relu, post=identity).apply({}, x)
    np.testing.assert_array_equal(y, [[-1.0, 22.0]])  # x + 10 relu(x): the identity path has x
    y = Residual(branch, shortcut, pre=nn.relu, post=identity, always=True).apply({}, x)
    np.testing.assert_array_equal(y, [[0.0, 22.0]])  # a shortcut that is called gets relu(x)
    for h in inputs:
        np.testing.assert_array_equal(h, nn.relu(x))


def test_no_shortcut_is_the_plain_network():
    x = jnp.asarray([[-1.0, 2.0]])
    np.testing.assert_array_equal(Residual(lambda h: 2 * h, None).apply({}, x), [[0.0, 4.0]])


def test_shortcut_of_wrong_shape_raises():
    with pytest.raises(
        ValueError, match=r"branch returned shape \(2, 3\).*shortcut returned \(2, 4\)"
    ):
        Residual(lambda h: h[:, :3], lambda h, shape: h).apply({}, jnp.ones((2, 4)))


@pytest.mark.slow
def test_gradient_through_zero_branches_is_the_identity():
    """The Jacobian of 50 blocks with F = 0 is the identity matrix."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(50):
                x = Residual(two_layers(4, zero=True), post=identity)(x)
            return x

    x = jnp.arange(4.0)
    variables = Deep().init(jax.random.key(0), x)
    jacobian = jax.jacobian(lambda x: Deep().apply(variables, x))(x)
    np.testing.assert_array_equal(jacobian, np.eye(4))


class TestTransforms:
    """Each JAX transform of `block.apply` against the plain call."""

    block = Residual(two_layers(8))
    x = jax.random.normal(jax.random.key(0), (16, 8))
    variables = block.init(jax.random.key(1), x)
    expected = block.apply(variables, x)

    def assert_close(self, result):
        np.testing.assert_allclose(np.reshape(result, (16, 8)), self.expected, rtol=1e-5, atol=1e-6)

    def test_jit(self):
        self.assert_close(jax.jit(self.block.apply)(self.variables, self.x))

    def test_vmap_over_examples(self):
        self.assert_close(jax.vmap(self.block.apply, (None, 0))(self.variables, self.x))

    @pytest.mark.slow
    def test_pmap(self):
        self.assert_close(
            jax.pmap(self.block.apply, in_axes=(None, 0))(self.variables, self.x.reshape(8, 2, 8))
        )

    def test_shard_map(self):
        mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
        P = jax.sharding.PartitionSpec
        f = jax.shard_map(
            self.block.apply, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch")
        )
        self.assert_close(jax.jit(f)(self.variables, self.x))

    @pytest.mark.slow
    def test_remat_has_the_same_gradient(self):
        def loss(apply):
            return jax.grad(lambda v: apply(v, self.x).sum())(self.variables)

        for a, b in zip(
            jax.tree.leaves(loss(self.block.apply)),
            jax.tree.leaves(loss(jax.checkpoint(self.block.apply))),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)

    @pytest.mark.slow
    def test_linen_scan_over_depth(self):
        class Scanned(nn.Module):
            @nn.compact
            def __call__(self, x):
                def body(module, x, _):
                    return Residual(two_layers(8), name="block")(x), None

                scan = nn.scan(
                    body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
                )
                return scan(self, x, None)[0]

        variables = Scanned().init(jax.random.key(0), self.x)
        assert variables["params"]["block"]["W1"]["kernel"].shape == (3, 8, 16)
        y = self.x
        for k in range(3):
            y = self.block.apply(
                {"params": jax.tree.map(lambda p, k=k: p[k], variables["params"]["block"])}, y
            )
        np.testing.assert_allclose(Scanned().apply(variables, self.x), y, rtol=1e-5, atol=1e-5)

    @pytest.mark.slow
    def test_grad_of_grad(self):
        second = jax.grad(
            lambda x: jax.grad(lambda x: (self.block.apply(self.variables, x) ** 3).sum())(x).sum()
        )
        assert np.isfinite(second(self.x)).all()


@pytest.mark.slow
def test_default_shortcut_subsamples_to_the_branch_shape():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    block = Residual(lambda h: jnp.zeros((2, 3, 3, 4)), linear_projection, post=identity)
    variables = block.init(jax.random.key(1), x)
    Ws = variables["params"]["Ws"]["kernel"]
    np.testing.assert_allclose(block.apply(variables, x), x[:, ::2, ::2] @ Ws, rtol=1e-5, atol=1e-6)


def test_zero_pad_has_no_parameters():
    block = Residual(lambda h: jnp.zeros((2, 3, 3, 8)), zero_pad)
    assert block.init(jax.random.key(0), jnp.ones((2, 5, 5, 3))) == {}
