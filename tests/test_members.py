"""Convolutions and steps with a member axis: what is chosen, and that each choice is right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_cases import CPU_BACKENDS, POINTWISE, SAME_3X3, pass_shapes
from helpers.conv_reference import assert_close, lowered, normal, reference

from resflax.kernels import conv, conv_backend, conv_general_dilated, members, onednn
from resflax.kernels.conv_params import ConvParams

UNIT = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
# Image shape, kernel shape and options of convolutions with few pixels, and of one with many.
SHAPES = {
    "same": ((2, 5, 4, 8), (3, 3, 8, 6), {}),
    "stem": ((2, 6, 6, 1), (3, 3, 1, 16), {}),
    "strided": ((2, 7, 8, 8), (3, 3, 8, 6), {"strides": (2, 2)}),
    "strided, odd padding": ((2, 8, 9, 4), (2, 3, 4, 5), {"strides": (2, 3)}),
    "dilated": ((2, 7, 7, 4), (3, 3, 4, 4), {"dilation": (2, 1), "padding": ((2, 1), (0, 1))}),
    "groups": ((2, 6, 7, 8), (3, 3, 2, 12), {"groups": 4}),
    "many pixels": ((8, 30, 30, 8), (3, 3, 8, 8), {"strides": (2, 2)}),
}


@pytest.mark.parametrize("backend", ["xla", *CPU_BACKENDS])
@pytest.mark.parametrize("case", SHAPES)
def test_passes_of_members_match_float64(backend, case):
    x, w, options = SHAPES[case]
    options = {**UNIT, **options}
    params = ConvParams(x[1:3], w[:2], **options)
    shapes = pass_shapes(params, x, w)
    operands = {
        name: (normal((3, *a)), normal((3, *b), seed=1)) for name, (a, b, _) in shapes.items()
    }

    @jax.jit
    def run(operands):
        bind = partial(conv.conv_p.bind, params=params, backend=backend)
        return {name: bind(*pair, conv_pass=name) for name, pair in operands.items()}

    actual = run(operands)
    for name, (lhs, rhs) in operands.items():
        one = partial(reference, name, shape=shapes[name][2], **options)
        assert_close(actual[name], np.stack([one(lhs[i], rhs[i]) for i in range(3)]))


def member_gradient(x, w):
    f = partial(conv_general_dilated, **{**SAME_3X3, "window_strides": (2, 2)})
    return jax.vmap(jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), (0, 1)))(x, w)


@pytest.mark.parametrize("choice", ["grouped", "loop"])
def test_member_convolution_on_a_gpu_is_a_choice(monkeypatch, choice):
    jax.clear_caches()  # the choice is not part of the key of JAX's caches
    monkeypatch.setattr(members, "default_member_convolution", choice)
    text = lowered(member_gradient, "cuda", normal((3, 2, 8, 8, 4)), normal((3, 3, 3, 4, 4)))
    assert ("stablehlo.while" in text) == (choice == "loop")
    assert text.count("stablehlo.convolution") == 3
    groups = "feature_group_count = 3" in text
    assert groups == (choice == "grouped")


def test_small_convolutions_of_members_are_batched_products():
    f = jax.vmap(partial(conv_general_dilated, **SAME_3X3))
    with conv_backend("cpu"):
        small = lowered(f, "cpu", normal((3, 2, 4, 4, 8)), normal((3, 3, 3, 8, 8)))
        large = lowered(f, "cpu", normal((3, 8, 64, 64, 8)), normal((3, 3, 3, 8, 8)))
    assert "while" not in small
    assert small.count("stablehlo.dot_general") == 1
    assert "batching_dims = [0] x [0]" in small
    assert "stablehlo.while" in large


def test_gradients_in_a_loop_are_convolutions_of_nhwc_images():
    # In a loop XLA:CPU computes any other layout by a slow loop over single numbers.
    x, w = normal((3, 4, 40, 40, 4)), normal((3, 3, 3, 4, 40))
    f = partial(conv_general_dilated, **{**SAME_3X3, "window_strides": (2, 2)})

    def gradients(x, w):
        return jax.lax.map(lambda t: jax.grad(lambda *t: jnp.sum(f(*t) ** 2), (0, 1))(*t), (x, w))

    with conv_backend("cpu"):
        text = lowered(gradients, "cpu", x, w)
    layouts = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert layouts
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in layouts)


@pytest.mark.parametrize(
    ("platform", "backend", "pixels", "expected"),
    [
        ("cpu", "cpu", 64 * 8 * 8, "vmap"),
        ("cpu", "cpu", 128 * 32 * 32, "map"),
        ("cpu", "xla", 64 * 8 * 8, "map"),
        ("gpu", "auto", 128 * 32 * 32, "vmap"),
        ("gpu", "auto", 256 * 224 * 224, "map"),
        ("other", "auto", 1, "map"),
    ],
)
def test_method_depends_on_platform_backend_and_pixels(platform, backend, pixels, expected):
    with conv_backend(backend):
        assert members.choose_method(platform, pixels) == expected


def test_method_of_onednn_is_vmap_for_small_images(monkeypatch):
    monkeypatch.setattr(onednn, "supports", lambda dtype: True)
    with conv_backend("onednn"):
        assert members.choose_method("cpu", 64 * 16 * 16) == "vmap"
        assert members.choose_method("cpu", 128 * 32 * 32, dtype="bfloat16") == "map"


def test_pointwise_members_are_one_batched_product():
    f = jax.vmap(partial(conv_general_dilated, **POINTWISE))
    with conv_backend("cpu"):
        text = lowered(f, "cpu", normal((3, 2, 4, 4, 8)), normal((3, 1, 1, 8, 8)))
    assert "while" not in text
    assert text.count("stablehlo.dot_general") == 1
