"""Feature maps and pooled features, against `model.features`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import apply, randomized, run, variables_of

from resflax import create_model, list_models
from resflax.nn import FeatureInfo
from resflax.zoo import get_spec

SHALLOW = {"depths": (1, 1, 2, 1), "widths": (32, 64, 96, 128)}


def maps_of(model, size):
    """Returns shapes and dtypes of a network's outputs, without computing them."""
    x = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    out, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize(
    "name",
    ["resnet18", "senet154", "resnetrs50", "resnetv2_50x1_bit", "resnetblur50", "resnetaa50d"],
)
def test_map_sizes_are_image_size_over_stride_rounded_up(name, output_stride):
    model = create_model(name, features_only=True, output_stride=output_stride, **SHALLOW)
    assert [f.name for f in model.features] == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert [f.stride for f in model.features] == [
        min(stride, output_stride) for stride in (2, 4, 8, 16, 32)
    ]
    for size in ((64, 33), (71, 100)):
        maps = maps_of(model, size)
        for feature, feature_map in zip(model.features, maps, strict=True):
            sides = (-(-side // feature.stride) for side in size)
            assert feature_map.shape == (2, *sides, feature.channels)


def test_features_of_known_networks():
    names = ("stem", "stage1", "stage2", "stage3", "stage4")
    sizes = ((64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32))
    resnet = [FeatureInfo(name, *size) for name, size in zip(names, sizes, strict=True)]
    assert create_model("resnet50", features_only=True).features == tuple(resnet)
    picked = create_model("resnet50", features_only=True, out_indices=[4, 1]).features
    assert picked == (resnet[4], resnet[1])
    assert create_model("resnet50").features == ()
    assert create_model("cifar_resnet20", features_only=True).features == (
        FeatureInfo("stem", 16, 1),
        FeatureInfo("stage1", 16, 1),
        FeatureInfo("stage2", 32, 2),
        FeatureInfo("stage3", 64, 4),
    )
    assert [f.channels for f in get_spec("ecaresnet50d_pruned").features] == [
        64,
        19,
        171,
        818,
        2022,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18d", "resnetv2_50"])
def test_maps_pooled_features_and_logits_agree(name):
    fields = SHALLOW | {"depths": (1, 1, 1, 1), "num_classes": 5}
    model = create_model(name, **fields)
    variables = randomized(variables_of(model))
    x = np.random.default_rng(0).standard_normal((2, 33, 40, 3)).astype(np.float32)

    def all_outputs(v, x):
        headless = create_model(name, **{**fields, "num_classes": 0})
        maps = create_model(name, features_only=True, **fields)
        return [m.apply(v, x, train=False) for m in (model, headless, maps)]

    logits, pooled, maps = run(all_outputs, variables, x)
    head = variables["params"]["head"]
    np.testing.assert_allclose(pooled @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-5)
    last = np.asarray(maps[-1], np.float64)
    if model.spec.preact:
        p, s = variables["params"]["head_norm"], variables["batch_stats"]["head_norm"]
        last = (last - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
        last = np.maximum(last, 0)
    np.testing.assert_allclose(last.mean((1, 2)), pooled, rtol=1e-4, atol=1e-5)


def test_out_indices_set_the_order_and_the_last_built_stage():
    model = create_model("resnet18", features_only=True, out_indices=(2, 0), **SHALLOW)
    variables = randomized(variables_of(model))
    modules = {name.split("_")[0] for name in variables["params"]}
    assert modules == {"stem", "stage1", "stage2"}
    assert [m.shape for m in maps_of(model, (64, 64))] == [(2, 8, 8, 64), (2, 32, 32, 64)]
    stem = create_model("resnetrs50", features_only=True, out_indices=(0,))
    assert {name.split("_")[0] for name in variables_of(stem)["params"]} == {"stem"}
    assert "stem_pool" not in variables_of(stem)["params"]


@pytest.mark.slow
def test_dilated_network_subsampled_is_the_strided_network():
    """Every second pixel of the dilated map is the strided map, away from the edges.

    After the replaced stride, the 3x3 convolution has dilation 2.
    """
    fields = {"depths": (1, 1, 1), "widths": (8, 12, 16), "stem_width": 8, "num_classes": 0}
    strided = create_model("resnet18", features_only=True, out_indices=(3,), **fields)
    dilated = create_model(
        "resnet18", features_only=True, out_indices=(3,), output_stride=8, **fields
    )
    variables = randomized(variables_of(strided))
    x = np.random.default_rng(0).standard_normal((1, 160, 160, 3)).astype(np.float32)
    (small,), (large,) = apply(strided, variables, x), apply(dilated, variables, x)
    assert (small.shape, large.shape) == ((1, 10, 10, 16), (1, 20, 20, 16))
    inner = slice(2, -2)
    np.testing.assert_allclose(
        large[:, ::2, ::2][:, inner, inner], small[:, inner, inner], rtol=1e-4, atol=1e-5
    )


def strides_of(spec):
    """Returns how often the network halves the image."""
    return int(np.log2(spec.features[-1].stride))


@pytest.mark.parametrize(
    ("name", "fields", "minimum"),
    [
        ("resnet50", {}, 17),
        ("resnet18", {}, 17),
        ("resnet50d", {}, 17),
        ("resnetrs50", {}, 17),
        ("resnet50", {"output_stride": 8}, 5),
        ("cifar_resnet20", {}, 3),
        ("wrn16_4", {}, 3),
    ],
)
def test_min_image_size_leaves_no_stride_on_one_pixel(name, fields, minimum):
    spec = get_spec(name).override(**fields)

    def before_last_stride(size):
        for _ in range(strides_of(spec) - 1):
            size = -(-size // 2)
        return size

    assert spec.min_image_size == minimum
    assert before_last_stride(minimum) > 1
    assert before_last_stride(minimum - 1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "name", ["seresnextaa101d_32x8d", "ecaresnet26t", "resnetblur50", "resnetv2_50x1_bit"]
)
def test_half_precision_maps_have_float32_parameters(name, dtype):
    model = create_model(name, dtype=dtype, features_only=True, **SHALLOW)
    assert {m.dtype for m in maps_of(model, (64, 64))} == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves(variables_of(model))} == {np.dtype(np.float32)}


def test_features_of_every_network():
    for name in list_models():
        features = get_spec(name).features
        assert features[0] == ("stem", get_spec(name).stem_width, features[0].stride)
        if get_spec(name).stem not in ("video", "video_2plus1d"):
            assert features[-1].stride == (4 if "cifar" in name or "wrn" in name else 32)
