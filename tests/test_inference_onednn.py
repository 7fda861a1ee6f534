"""Networks run by oneDNN as one call match `model.apply(train=False)`."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.networks import apply, randomized, variables_of
from helpers.small_specs import EXTRA_SPECS, zoo_specs

from resflax import UserError, create_model
from resflax.inference import OPS, Graph, Node, build_graph, make_predictor
from resflax.inference.onednn_executor import NETWORK_OPS, OneDnnExecutor, onednn_reason_against
from resflax.kernels import network as onednn_network

needs_onednn = pytest.mark.skipif(
    onednn_network.unavailable_reason() is not None,
    reason=str(onednn_network.unavailable_reason()),
)
pytestmark = needs_onednn

SPECS = {**zoo_specs(), **EXTRA_SPECS}
# Every operation, and every shortcut, attention, norm and filter.
QUICK = ("blur", "plain_preact", "preact_se_A", "v1_frn", "pruned", "resnetv2_50d_evos",
         "resnetv2_50x1_bit", "dilated_average")  # fmt: skip


def network(spec, shape=(3, 33, 40, 3)):
    """Returns a model, random variables and random images."""
    model = create_model(spec, scan=False)
    variables = randomized(variables_of(model, shape))
    return model, variables, np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def relative_error(value, expected):
    """Returns the largest difference over the largest expected value."""
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape
    return np.abs(value - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SPECS]
)
def test_onednn_matches_model(name):
    model, variables, x = network(SPECS[name])
    graph, expected = build_graph(model.spec, variables), apply(model, variables, x)
    run = OneDnnExecutor(graph, "float32")
    for n in (3, 1):
        assert relative_error(run(x[:n]), expected[:n]) < 5e-6
    if onednn_reason_against(graph, "bfloat16") is None:
        assert relative_error(OneDnnExecutor(graph, "bfloat16")(x), expected) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet26d", "seresnet50", "resnext50_32x4d"])
def test_onednn_matches_jax_at_full_size(name, dtype):
    """Images so large that segments of the network run on different numbers of them."""
    model, variables, x = network(name, (13, 224, 192, 3))
    half = dtype == "bfloat16"
    if half and onednn_reason_against(build_graph(model.spec, variables), dtype):
        pytest.skip("this CPU has no bfloat16 instructions")
    run = {
        backend: make_predictor(model.spec, variables, backend=backend, dtype=dtype)
        for backend in ("jax", "onednn")
    }
    expected = np.concatenate([run["jax"](x[:8]), run["jax"](x[8:])])
    for n in (13, 1):
        assert relative_error(run["onednn"](x[:n]), expected[:n]) < (0.1 if half else 1e-5)


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 13, 30), (5, 9, 7), (1, 60, 61), (3, 3, 50)])
@pytest.mark.parametrize("widths", [(16, 32), (48, 16), (20, 16)])
def test_3x3_convolution_matches_float64(shape, widths):
    """Winograd's algorithm where channels are multiples of 16 and tiles are many."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, widths[0])).astype(np.float32)
    kernel = rng.standard_normal((3, 3, *widths)).astype(np.float32)
    bias = rng.standard_normal(widths[1]).astype(np.float32)
    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "activation": "relu"}
    twice = rng.standard_normal((1, 1, widths[0], widths[1])).astype(np.float32)
    nodes = (
        Node("conv", "shortcut", ("image",), {**options, "padding": 0, "activation": "none"},
             {"kernel": twice}),
        Node("conv", "conv", ("image", "shortcut"), options, {"kernel": kernel, "bias": bias}),
        Node("mean", "mean", ("conv",), {}, {}),
    )  # fmt: skip
    y = OneDnnExecutor(Graph(nodes, "mean", *widths), "float32")(x)
    image = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))
    expected = np.einsum("nhwcij,ijck->nhwk", windows, kernel) + x @ twice[0, 0] + bias
    assert relative_error(y, np.maximum(expected, 0).mean((1, 2))) < 5e-6


def test_batches_and_sizes_of_one_predictor():
    model, variables, _ = network("cifar_resnet8")
    predict = make_predictor(model.spec, variables, backend="onednn")
    rng = np.random.default_rng(0)
    for n, height, width in [(1, 8, 8), (7, 9, 30), (2, 32, 32), (5, 8, 8), (1, 17, 5)] * 2:
        x = rng.standard_normal((n, height, width, 3)).astype(np.float32)
        assert relative_error(predict(x), apply(model, variables, x)) < 5e-6


def test_many_sizes_reuse_a_bounded_cache():
    model, variables, _ = network("cifar_resnet8")
    predict = make_predictor(model.spec, variables, backend="onednn")
    for side in [*range(8, 40), 8]:
        x = np.full((1, side, side, 3), 0.5, np.float32)
        y = predict(x)
    assert relative_error(y, apply(model, variables, x)) < 5e-6


def test_empty_batch_has_no_rows():
    model, variables, x = network("cifar_resnet8")
    predict = make_predictor(model.spec, variables, backend="onednn")
    assert predict(x[:0]).shape == (0, 10)


def test_uint8_images_are_normalized():
    model, variables, _ = network("cifar_resnet8")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3)).astype(np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.25])
    predict = make_predictor(model.spec, variables, mean=mean, std=std, backend="onednn")
    x = ((pixels / 255 - mean) / std).astype(np.float32)
    expected = apply(model, variables, x)
    assert relative_error(predict(pixels), expected) < 5e-6
    assert relative_error(predict(x), expected) < 5e-6
    half = make_predictor(
        model.spec, variables, mean=mean, std=std, backend="onednn", dtype="bfloat16"
    )
    assert relative_error(half(pixels), expected) < 0.05


@pytest.mark.parametrize("outputs", ["features", "probabilities"])
def test_other_outputs_match_jax(outputs):
    model, variables, x = network("cifar_resnet8")
    run = {
        backend: make_predictor(model.spec, variables, outputs=outputs, backend=backend)
        for backend in ("jax", "onednn")
    }
    assert relative_error(run["onednn"](x), run["jax"](x)) < 5e-6


def test_threads_share_a_predictor():
    model, variables, x = network("cifar_resnet8", (6, 16, 16, 3))
    predict = make_predictor(model.spec, variables, backend="onednn")
    expected = apply(model, variables, x)
    with ThreadPoolExecutor(4) as pool:
        sizes = [1, 2, 3, 6] * 8
        results = list(pool.map(lambda n: np.asarray(predict(x[:n])), sizes))
    assert all(relative_error(y, expected[:n]) < 5e-6 for y, n in zip(results, sizes, strict=True))


def test_invalid_images_are_rejected():
    model, variables, x = network("cifar_resnet8")
    predict = make_predictor(model.spec, variables, backend="onednn")
    with pytest.raises(ValueError, match=r"expected images of shape \(n, height, width, 3\)"):
        predict(x[..., :2])
    with pytest.raises(ValueError, match="raw uint8 images need mean and std"):
        predict(x.astype(np.uint8))
    model, variables, _ = network("resnetv2_50x1_bit")
    with pytest.raises(ValueError, match="too small"):
        OneDnnExecutor(build_graph(model.spec, variables), "float32")(x[:, :0])


def test_network_is_freed_with_its_predictor():
    model, variables, x = network("cifar_resnet8")
    predict = make_predictor(model.spec, variables, backend="onednn")
    predict(x)
    reference = weakref.ref(predict._run._network)
    del predict
    gc.collect()
    assert reference() is None


def test_auto_prefers_onednn_where_it_can_run():
    model, variables, _ = network("cifar_resnet8")
    assert make_predictor(model.spec, variables).backend == "onednn"
    assert make_predictor(model.spec, variables, dtype="float16").backend == "jax"
    with pytest.raises(UserError, match="computes in float32 or bfloat16, not in float16"):
        make_predictor(model.spec, variables, dtype="float16", backend="onednn")


def test_backend_and_reasons_are_described(monkeypatch):
    model, variables, _ = network("cifar_resnet8")
    assert make_predictor(model.spec, variables).describe_backend() == "inference: oneDNN"
    reason = "oneDNN needs a C++ compiler: apt install g++"
    monkeypatch.setattr(onednn_network, "unavailable_reason", lambda: reason)
    predict = make_predictor(model.spec, variables)
    assert predict.backend == "jax"
    assert predict.describe_backend() == f"inference: JAX ({reason})"


def test_every_folded_operation_is_supported():
    assert set(OPS) - {"batch_norm"} == set(NETWORK_OPS)
