"""The operations that a convolution is lowered to per platform, and what is passed to `lax`."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import pytest
from helpers.conv_cases import (
    LAYERS,
    NHWC,
    SAME_3X3,
    every_layer,
    example_of,
    loss,
    needs_onednn,
)
from helpers.conv_reference import assert_close, lowered, normal
from jax import lax

from resflax.kernels import conv_backend, conv_general_dilated, onednn


def conv_fn(options):
    return lambda x, w: conv_general_dilated(x, w, **options)


@every_layer
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_one_convolution_per_pass(backend, layer, platform):
    x, w, options = LAYERS[layer]
    y = partial(conv_general_dilated, **options)
    text = lowered(y, platform, normal(x), normal(w))
    assert text.count("stablehlo.convolution") == 1
    reverse = lowered(lambda x, w, g: jax.vjp(y, x, w)[1](g), platform, *vjp_args(y, x, w))
    assert reverse.count("stablehlo.convolution") == 2
    assert not any(op in text + reverse for op in ("custom_call", "while", "dot_general"))


def vjp_args(y, x, w):
    x, w = normal(x), normal(w)
    out = jax.eval_shape(y, x, w)
    return x, w, jnp.zeros(out.shape, out.dtype)


def test_cpu_backend_lowers_pointwise_to_a_matrix_product():
    x, w, options = LAYERS["pointwise"]
    with conv_backend("cpu"):
        text = lowered(conv_fn(options), "cpu", normal(x), normal(w))
    assert text.count("stablehlo.dot_general") == 1
    assert "stablehlo.convolution" not in text
    assert "custom_call" not in text


@needs_onednn
def test_auto_backend_lowers_to_onednn_where_available():
    for x, w, options in LAYERS.values():
        with conv_backend("auto"):
            text = lowered(conv_fn(options), "cpu", normal(x), normal(w))
        assert f"@{onednn.CUSTOM_CALL}" in text
        assert "stablehlo.convolution" not in text


def test_auto_backend_has_no_custom_call_without_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "supports", lambda dtype: False)
    x, w, options = LAYERS["winograd"]
    with conv_backend("auto"):
        text = lowered(conv_fn(options), "cpu", normal(x), normal(w))
    assert "custom_call" not in text
    assert text.count("stablehlo.dot_general") >= 16


def test_xla_backend_lowers_to_a_convolution_on_the_cpu():
    for x, w, options in LAYERS.values():
        with conv_backend("xla"):
            text = lowered(conv_fn(options), "cpu", normal(x), normal(w))
        assert text.count("stablehlo.convolution") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_exported_programs_run_on_every_platform(name):
    x, w, *_, options = example_of("winograd")

    def f(x, w):
        return loss(conv_general_dilated, x, w, **options)

    with conv_backend(name):
        run = jax.jit(jax.value_and_grad(f, (0, 1)))
        exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(x, w)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "custom_call" not in exported.mlir_module()
    expected = jax.value_and_grad(partial(loss, lax.conv_general_dilated, **options), (0, 1))(x, w)
    jax.tree.map(assert_close, exported.call(x, w), expected)
    pytest.importorskip("flatbuffers", reason="jax.export needs it to serialize")
    restored = jax.export.deserialize(exported.serialize())
    jax.tree.map(assert_close, restored.call(x, w), expected)


@pytest.mark.parametrize("precision", ["highest", "bfloat16"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_default_matmul_precision_of_the_caller_is_used(precision, platform):
    x, w, options = LAYERS["winograd"]

    def precision_of(convolve):
        def f(x, w):
            with jax.default_matmul_precision(precision):
                return convolve(x, w, **options)

        module = lowered(f, platform, normal(x), normal(w))
        lines = [line for line in module.splitlines() if "stablehlo.convolution" in line]
        return [line.split("precision_config =")[1].split("]")[0] for line in lines]

    assert precision_of(conv_general_dilated) == precision_of(lax.conv_general_dilated)


# Cases that are passed to `lax`.

UNSUPPORTED = {
    "string padding": {"padding": "SAME"},
    "dilated images": {"lhs_dilation": (2, 1)},
    "channels first": {"dimension_numbers": None},
    "another layout": {"dimension_numbers": ("NHWC", "OHWI", "NHWC")},
    "precision": {"precision": lax.Precision.HIGHEST},
    "result dtype": {"preferred_element_type": jnp.float32},
    "batch groups": {"batch_group_count": 2},
    "no spatial axis": {
        "window_strides": (),
        "padding": (),
        "dimension_numbers": ("NC", "IO", "NC"),
    },
}


def assert_same_program(options, x, w):
    """Asserts that both functions lower to the same text, and returns it."""
    expected = lowered(lambda x, w: lax.conv_general_dilated(x, w, **options), "cpu", x, w)
    assert lowered(lambda x, w: conv_general_dilated(x, w, **options), "cpu", x, w) == expected
    return expected


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_options_give_the_program_of_lax(backend, case):
    options = {**SAME_3X3, **UNSUPPORTED[case]}
    rank = 2 + len(options["window_strides"])
    x, w = normal((4, 8, 8, 8)[-rank:]), normal((3, 3, 8, 8)[-rank:])
    if case == "channels first":
        w = normal((8, 8, 3, 3))
    assert "stablehlo.convolution" in assert_same_program(options, x, w)


def test_integers_give_the_program_of_lax(backend):
    x, w = jnp.ones((2, 9, 8, 8), jnp.int32), jnp.ones((3, 3, 8, 8), jnp.int32)
    assert_same_program(SAME_3X3, x, w)


def test_dimension_numbers_as_passed_by_flax_are_supported():
    x, w, options = LAYERS["pointwise"]
    numbers = lax.conv_dimension_numbers(x, w, NHWC)
    unset = {"precision": None, "preferred_element_type": None}
    options = {**options, **unset, "dimension_numbers": numbers}
    with conv_backend("cpu"):
        text = lowered(conv_fn(options), "cpu", normal(x), normal(w))
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize(
    ("x", "w", "options"),
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
def test_inconsistent_arguments_raise_the_error_of_lax(backend, x, w, options):
    with pytest.raises((TypeError, ValueError)) as expected:
        lax.conv_general_dilated(x, w, **{**SAME_3X3, **options})
    with pytest.raises(expected.type) as actual:
        conv_general_dilated(x, w, **{**SAME_3X3, **options})
    assert str(actual.value) == str(expected.value)
