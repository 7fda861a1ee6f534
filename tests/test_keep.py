"""`resflax.kernels.materialize`: an identity that only the CPU's road in pure JAX writes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_reference import lowered, normal
from jax.test_util import check_grads

from resflax import create_model
from resflax.kernels import backend as roads
from resflax.kernels import onednn
from resflax.kernels.materialize import materialize


@pytest.mark.parametrize("road", ["plain", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30, 3e38, np.inf, -np.inf, np.nan])
def test_it_is_the_identity_bit_for_bit(road, dtype, value, monkeypatch):
    monkeypatch.setattr(roads, "ROAD", road)
    x = jnp.full((3,), value, dtype)
    found = jax.jit(materialize)(x)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found.astype(jnp.float32), x.astype(jnp.float32))


@pytest.mark.parametrize("road", ["plain", "cpu"])
def test_its_derivatives_are_those_of_the_identity(road, monkeypatch):
    monkeypatch.setattr(roads, "ROAD", road)
    x = normal((4, 3))
    check_grads(lambda x: materialize(jnp.sin(x)), (x,), order=2, modes=("fwd", "rev"))
    assert jnp.array_equal(jax.jit(jax.vmap(materialize, 1, 1))(x), x)
    zero = jax.jit(jax.grad(lambda x: materialize(x).sum()))(jnp.zeros(3))  # where |x| has a corner
    np.testing.assert_array_equal(zero, jnp.ones(3))


def test_only_the_road_of_pure_jax_writes_it_and_its_gradient_out(monkeypatch):
    x = normal((4, 3))
    for road, platform, divisions in [
        ("cpu", "cpu", 1), ("plain", "cpu", 0), ("cpu", "cuda", 0), ("cpu", "tpu", 0)
    ]:  # fmt: skip
        monkeypatch.setattr(roads, "ROAD", road)
        for f in (lambda x: materialize(x), lambda x: jax.vjp(materialize, x)[1](x)):
            assert lowered(f, platform, x).count("stablehlo.divide") == divisions
    monkeypatch.setattr(roads, "ROAD", "auto")
    monkeypatch.setattr(onednn, "supports", lambda dtype: True)
    assert "stablehlo.divide" not in lowered(lambda x: materialize(x), "cpu", x)


def test_a_network_keeps_the_output_of_every_block():
    model, x = create_model("cifar_resnet20"), jnp.zeros((1, 8, 8, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    text = str(jax.make_jaxpr(lambda v: model.apply(v, x, train=False))(variables))
    assert text.count("resflax_keep[") == 9
