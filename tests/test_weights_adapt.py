"""New heads and other numbers of image channels, checked against timm and closed forms."""

import re

import jax
import numpy as np
import pytest
from helpers.networks import apply, randomized

from resflax import UserError, create_model, load_pretrained
from resflax.nn.stems import STEMS
from resflax.weights import convert_channels, read_weights, replace_head, save_file, to_torch
from resflax.weights.adapt import convert_moments, convert_preprocess
from resflax.weights.bridge import stack_variables
from resflax.weights.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec


def variables_for(name, channels=3, **fields):
    return randomized(variable_shapes(get_spec(name).override(**fields), channels))


def stem_kernel(variables):
    params = variables["params"]
    name = "stem_conv1" if "stem_conv1" in params else "stem_conv"
    return params[name]["kernel"]


@pytest.mark.parametrize("old", [1, 3])
@pytest.mark.parametrize("new", [1, 2, 3, 4, 7])
def test_kernel_conversion_is_that_of_timm(old, new):
    torch = pytest.importorskip("torch")
    adapt_input_conv = pytest.importorskip("timm.models").adapt_input_conv
    variables = variables_for("cifar_resnet8", old)
    weight = torch.from_numpy(stem_kernel(variables).transpose(3, 2, 0, 1).copy())
    expected = adapt_input_conv(new, weight, base_chans=old).numpy()
    kernel = stem_kernel(convert_channels(variables, new))
    np.testing.assert_allclose(kernel.transpose(3, 2, 0, 1), expected, rtol=1e-6)
    assert kernel.dtype == np.float32


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(s, marks=() if s == "cifar" else pytest.mark.slow)
        for s in STEMS
        if "video" not in s  # for three dimensions
    ],
)
def test_gray_image_gives_the_logits_of_its_copies(stem):
    """For every stem: RGB weights on three equal channels, and converted weights on one."""
    spec = get_spec("test_resnet").override(stem=stem, num_classes=4)
    variables = randomized(variable_shapes(spec))
    gray = np.random.default_rng(0).standard_normal((2, 32, 32, 1)).astype(np.float32)
    model = create_model(spec)
    expected = apply(model, variables, gray.repeat(3, -1))
    one_channel = convert_channels(variables, 1)
    np.testing.assert_allclose(apply(model, one_channel, gray), expected, rtol=1e-4, atol=1e-4)
    back = convert_channels(one_channel, 3)
    np.testing.assert_allclose(
        apply(model, back, gray.repeat(3, -1)), expected, rtol=1e-4, atol=1e-4
    )
    assert jax.tree.map(np.shape, back) == jax.tree.map(np.shape, variables)


def test_moments_are_averaged_or_repeated():
    assert np.round(convert_moments(IMAGENET_MEAN, 1), 3) == [0.449]  # as timm's gray models
    assert np.round(convert_moments(IMAGENET_STD, 1), 3) == [0.226]
    assert convert_moments((0.25,), 3) == (0.25, 0.25, 0.25)
    assert convert_moments((0.1, 0.2, 0.3), 5) == (0.1, 0.2, 0.3, 0.1, 0.2)
    assert convert_preprocess(Preprocess(mean=HALF, std=HALF), 1).mean == (0.5,)


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet8",
        "cifar_preact_resnet8",
        "test_resnet",
        pytest.param("resnetv2_50d", marks=pytest.mark.slow),
        pytest.param("ecaresnet50d_pruned", marks=pytest.mark.slow),
    ],
)
def test_headless_variables_get_a_fresh_head(name):
    spec = get_spec(name)
    headless = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), variable_shapes(spec.override(num_classes=0))
    )
    variables = replace_head(headless, 5, seed=3)
    expected = variable_shapes(spec.override(num_classes=5))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, expected)
    stacked = replace_head(stack_variables(headless), 5, seed=3) if not spec.pruned else variables
    np.testing.assert_array_equal(
        stacked["params"]["head"]["kernel"], variables["params"]["head"]["kernel"]
    )
    assert replace_head(headless, 0)["params"].keys() == headless["params"].keys()


@pytest.fixture
def files(tmp_path):
    """Weights files of `cifar_resnet8` with 10 classes, and without a head."""
    for name, classes in (("head", 10), ("body", 0)):
        variables = variables_for("cifar_resnet8", num_classes=classes)
        save_file(tmp_path / f"{name}.safetensors", to_torch("cifar_resnet8", variables))
    return tmp_path


def load(path, **options):
    return load_pretrained(path, model="cifar_resnet8", **options)


def test_headless_file_loads_with_and_without_a_new_head(files):
    body = load(files / "body.safetensors")
    assert body.model.spec.num_classes == 0
    assert body.source.endswith("; no classification head")
    assert body.classes == ()
    new = load(files / "body.safetensors", num_classes=7)
    assert new.variables["params"]["head"]["kernel"].shape == (64, 7)
    assert new.source.endswith("; no classification head; new head for 7 classes")


def test_reset_head_also_replaces_a_head_of_equal_size(files):
    def head(**options):
        return load(files / "head.safetensors", **options).variables["params"]["head"]["kernel"]

    np.testing.assert_array_equal(head(num_classes=10), head())
    assert (head(num_classes=10, reset_head=True) != head()).all()
    np.testing.assert_array_equal(head(reset_head=True, seed=2), head(reset_head=True, seed=2))


def test_channels_convert_weights_and_normalization(files):
    loaded = load(files / "head.safetensors", channels=1)
    assert loaded.source.endswith("; converted from 3 to 1 image channels")
    assert stem_kernel(loaded.variables).shape == (3, 3, 1, 16)
    assert loaded.preprocess.mean == pytest.approx((0.449,), abs=1e-3)
    assert loaded.preprocess(np.zeros((40, 40, 3), np.uint8)).shape == (32, 32, 1)
    assert (
        load(files / "head.safetensors", channels=3).source
        == load(files / "head.safetensors").source
    )


def test_bare_file_gets_the_normalization_of_its_architecture(files):
    weights = read_weights(files / "head.safetensors", "cifar_resnet8")
    preprocess = weights.config.preprocess
    assert (preprocess.mean, preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert weights.source.endswith(
        "; default normalization of the architecture: mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize("value", [-1, 2.0, True, "3"])
def test_invalid_classes_and_channels_are_rejected(value, files):
    with pytest.raises(UserError, match=re.escape(f"num_classes is {value!r}: expected an int")):
        load(files / "head.safetensors", num_classes=value)
    with pytest.raises(UserError, match=re.escape(f"channels is {value!r}: expected an integer")):
        load(files / "head.safetensors", channels=value)
