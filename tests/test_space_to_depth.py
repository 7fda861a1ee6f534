"""Strided convolutions of few channels over blocks of pixels, as on GPUs, in NumPy and float64."""

from functools import partial

import hypothesis.strategies as st
import jax
import pytest
from helpers.conv_cases import NHWC, pass_shapes
from helpers.conv_reference import assert_close, lowered, normal, reference
from hypothesis import assume, given, settings

from resflax.kernels import conv_general_dilated, space_to_depth
from resflax.kernels.conv_params import ConvParams

pads = st.tuples(st.integers(-1, 3), st.integers(-1, 3))


@settings(deadline=None, max_examples=12)
@given(
    size=st.tuples(st.integers(3, 10), st.integers(3, 10)),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    strides=st.sampled_from([(2, 2), (2, 1), (1, 3), (3, 2)]),
    padding=st.tuples(pads, pads),
    channels=st.integers(1, 4),
)
def test_passes_over_blocks_match_numpy(size, kernel, strides, padding, channels):
    assume(strides[0] * strides[1] * channels <= space_to_depth.MAX_CHANNELS)
    params = ConvParams(size, kernel, strides, padding, (1, 1), 1)
    assume(min(params.output_size) > 0)
    shapes = pass_shapes(params, (2, *size, channels), (*kernel, channels, 5))
    options = {"strides": strides, "padding": padding, "dilation": (1, 1), "groups": 1}
    for conv_pass, (lhs, rhs, shape) in shapes.items():
        a, b = normal(lhs), normal(rhs, seed=1)
        expected = reference(conv_pass, a, b, shape, **options)
        assert_close(space_to_depth.convolve(conv_pass, a, b, params), expected)


@pytest.mark.parametrize(
    ("channels", "stride", "groups", "inputs"), [(3, 2, 1, 16), (4, 2, 1, 16), (5, 2, 1, 5),
                                                 (3, 1, 1, 3), (4, 2, 2, 2)]
)  # fmt: skip
def test_gpus_get_blocks_for_few_strided_channels_only(channels, stride, groups, inputs):
    conv = partial(
        conv_general_dilated,
        window_strides=(stride, stride),
        padding=((3, 3), (3, 3)),
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )
    x, w = normal((2, 8, 8, channels)), normal((7, 7, channels // groups, 8))
    text = lowered(conv, "cuda", x, w)
    assert text.count("stablehlo.convolution") == 1
    side = 4 if inputs == 16 else 7
    assert f"tensor<{side}x{side}x{inputs}x8xf32>" in text
    for platform in ("cpu", "tpu"):
        assert "x16x8xf32" not in lowered(conv, platform, x, w)


def test_gradient_of_a_stem_takes_one_convolution_per_pass():
    conv = partial(
        conv_general_dilated,
        window_strides=(2, 2),
        padding=((3, 3), (3, 3)),
        dimension_numbers=NHWC,
    )
    x, w, g = normal((2, 8, 8, 3)), normal((7, 7, 3, 8)), normal((2, 4, 4, 8))
    text = lowered(lambda x, w, g: jax.vjp(conv, x, w)[1](g), "cuda", x, w, g)
    assert text.count("stablehlo.convolution") == 2
