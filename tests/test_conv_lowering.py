"""What a convolution is lowered to on each platform, and what goes to JAX's own."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import pytest
from helpers.conv_cases import LAYERS, NHWC, SAME, every_layer, loss, needs_onednn, point
from helpers.conv_reference import assert_close, lowered, normal
from jax import lax

from resflax.kernels import backend as roads
from resflax.kernels import onednn
from resflax.kernels.conv import conv_general_dilated


@every_layer
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_one_convolution_a_reading(road, layer, platform):
    x, w, how = LAYERS[layer]
    y = partial(conv_general_dilated, **how)
    text = lowered(y, platform, normal(x), normal(w))
    assert text.count("stablehlo.convolution") == 1
    reverse = lowered(lambda x, w, g: jax.vjp(y, x, w)[1](g), platform, *vjp_args(y, x, w))
    assert reverse.count("stablehlo.convolution") == 2
    assert not any(op in text + reverse for op in ("custom_call", "while", "dot_general"))


def vjp_args(y, x, w):
    x, w = normal(x), normal(w)
    out = jax.eval_shape(y, x, w)
    return x, w, jnp.zeros(out.shape, out.dtype)


def test_the_cpu_gets_a_product_for_a_pointwise_convolution(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "cpu")
    x, w, how = LAYERS["pointwise"]
    text = lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", normal(x), normal(w))
    assert text.count("stablehlo.dot_general") == 1
    assert "stablehlo.convolution" not in text
    assert "custom_call" not in text


@needs_onednn
def test_the_cpu_gets_onednn_by_default_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "auto")
    for x, w, how in LAYERS.values():
        y = lambda x, w, how=how: conv_general_dilated(x, w, **how)  # noqa: E731
        text = lowered(y, "cpu", normal(x), normal(w))
        assert f"@{onednn.TARGET}" in text
        assert "stablehlo.convolution" not in text


def test_the_cpu_gets_no_custom_call_where_onednn_is_missing(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "auto")
    monkeypatch.setattr(onednn, "supports", lambda dtype: False)
    x, w, how = LAYERS["winograd"]
    text = lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", normal(x), normal(w))
    assert "custom_call" not in text
    assert text.count("stablehlo.dot_general") >= 16


def test_the_plain_road_is_a_convolution_on_the_cpu(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "plain")
    for x, w, how in LAYERS.values():
        y = lambda x, w, how=how: conv_general_dilated(x, w, **how)  # noqa: E731
        assert lowered(y, "cpu", normal(x), normal(w)).count("stablehlo.convolution") == 1


@pytest.mark.parametrize("road", ["auto", "cpu"])
def test_what_is_exported_runs_everywhere(road, monkeypatch):
    monkeypatch.setattr(roads, "ROAD", road)
    x, w, *_, how = point("winograd")

    def f(x, w):
        return loss(conv_general_dilated, x, w, **how)

    run = jax.jit(jax.value_and_grad(f, (0, 1)))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(x, w)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "custom_call" not in exported.mlir_module()
    expected = jax.value_and_grad(partial(loss, lax.conv_general_dilated, **how), (0, 1))(x, w)
    jax.tree.map(assert_close, exported.call(x, w), expected)
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialise")
    again = jax.export.deserialize(exported.serialize())
    jax.tree.map(assert_close, again.call(x, w), expected)


@pytest.mark.parametrize("precision", ["highest", "bfloat16"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_default_precision_where_it_is_called_holds(precision, platform):
    x, w, how = LAYERS["winograd"]

    def text(convolve):
        def f(x, w):
            with jax.default_matmul_precision(precision):
                return convolve(x, w, **how)

        module = lowered(f, platform, normal(x), normal(w))
        lines = [line for line in module.splitlines() if "stablehlo.convolution" in line]
        return [line.split("precision_config =")[1].split("]")[0] for line in lines]

    assert text(conv_general_dilated) == text(lax.conv_general_dilated)


# What goes to JAX's own.

FOREIGN = {
    "string padding": {"padding": "SAME"},
    "dilated images": {"lhs_dilation": (2, 1)},
    "channels first": {"dimension_numbers": None},
    "another layout": {"dimension_numbers": ("NHWC", "OHWI", "NHWC")},
    "precision": {"precision": lax.Precision.HIGHEST},
    "result's dtype": {"preferred_element_type": jnp.float32},
    "batch groups": {"batch_group_count": 2},
    "images and kernels of one axis less": {
        "window_strides": (1,),
        "padding": ((1, 1),),
        "dimension_numbers": ("NHC", "HIO", "NHC"),
    },
}


def same_program(how, x, w):
    """The lowered text of lax's call, which must be ours too."""
    theirs = lowered(lambda x, w: lax.conv_general_dilated(x, w, **how), "cpu", x, w)
    assert lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", x, w) == theirs
    return theirs


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_ours_is_the_program_of_lax(road, what):
    how = {**SAME, **FOREIGN[what]}
    rank = 2 + len(how["window_strides"])
    x, w = normal((4, 8, 8, 8)[-rank:]), normal((3, 3, 8, 8)[-rank:])
    if what == "channels first":
        w = normal((8, 8, 3, 3))
    assert "stablehlo.convolution" in same_program(how, x, w)


def test_integers_are_the_program_of_lax(road):
    x, w = jnp.ones((2, 9, 8, 8), jnp.int32), jnp.ones((3, 3, 8, 8), jnp.int32)
    same_program(SAME, x, w)


def test_the_layout_that_flax_passes_is_ours(monkeypatch):
    monkeypatch.setattr(roads, "ROAD", "cpu")
    x, w, how = LAYERS["pointwise"]
    numbers = lax.conv_dimension_numbers(x, w, NHWC)
    how = {**how, "dimension_numbers": numbers, "precision": None, "preferred_element_type": None}
    text = lowered(lambda x, w: conv_general_dilated(x, w, **how), "cpu", normal(x), normal(w))
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize(
    ("x", "w", "how"),
    [
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8), jnp.bfloat16), {}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 7, 8)), {}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 4, 7)), {"feature_group_count": 2}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8)), {}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"feature_group_count": 0}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"window_strides": (1,)}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"rhs_dilation": (0, 1)}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"padding": ((1, 1),)}),
        (jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 3, 8, 8)), {"padding": (1, 1)}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else value.shape),
)
def test_what_does_not_fit_is_the_error_of_lax(road, x, w, how):
    with pytest.raises((TypeError, ValueError)) as expected:
        lax.conv_general_dilated(x, w, **{**SAME, **how})
    with pytest.raises(expected.type) as found:
        conv_general_dilated(x, w, **{**SAME, **how})
    assert str(found.value) == str(expected.value)


def test_an_unknown_road_is_one_line_at_import():
    done = subprocess.run(
        [sys.executable, "-c", "import resflax.kernels.conv"],
        env={**os.environ, "RESFLAX_CONV": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.endswith(
        "unknown RESFLAX_CONV 'nonsense': expected one of auto, plain, cpu, onednn"
    )
