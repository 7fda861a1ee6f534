"""`materialize` is the identity, and has an effect only on the "cpu" backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import lowered, normal
from jax.test_util import check_grads

from resflax import create_model
from resflax.kernels import conv_backend, onednn
from resflax.kernels.materialize import materialize


@pytest.mark.parametrize("name", ["xla", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30, 3e38, np.inf, -np.inf, np.nan])
def test_materialize_is_the_identity_bit_for_bit(name, dtype, value):
    x = jnp.full((3,), value, dtype)
    with conv_backend(name):
        actual = jax.jit(materialize)(x)
    assert actual.dtype == x.dtype
    np.testing.assert_array_equal(actual.astype(jnp.float32), x.astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xla", "cpu"])
def test_materialize_has_the_derivatives_of_the_identity(name):
    x = normal((4, 3))
    with conv_backend(name):
        check_grads(lambda x: materialize(jnp.sin(x)), (x,), order=2, modes=("fwd", "rev"))
        assert jnp.array_equal(jax.jit(jax.vmap(materialize, 1, 1))(x), x)
        at_zero = jax.jit(jax.grad(lambda x: materialize(x).sum()))(jnp.zeros(3))  # a kink of |x|
    np.testing.assert_array_equal(at_zero, jnp.ones(3))


@pytest.mark.parametrize(
    ("name", "platform", "divisions"),
    [("cpu", "cpu", 1), ("xla", "cpu", 0), ("cpu", "cuda", 0), ("cpu", "tpu", 0)],
)
def test_only_the_cpu_backend_materializes(name, platform, divisions):
    x = normal((4, 3))
    with conv_backend(name):
        for f in (lambda x: materialize(x), lambda x: jax.vjp(materialize, x)[1](x)):
            assert lowered(f, platform, x).count("stablehlo.divide") == divisions


def test_onednn_backend_does_not_materialize(monkeypatch):
    monkeypatch.setattr(onednn, "supports", lambda dtype: True)
    with conv_backend("auto"):
        text = lowered(lambda x: materialize(x), "cpu", normal((4, 3)))
    assert "stablehlo.divide" not in text


def test_network_materializes_the_output_of_every_block():
    model, x = create_model("cifar_resnet20"), jnp.zeros((1, 8, 8, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    text = str(jax.make_jaxpr(lambda v: model.apply(v, x, train=False))(variables))
    assert text.count("resflax_materialize[") == 9
