"""Networks run by oneDNN as one call match `model.apply(train=False)`."""

import gc
import resource
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import apply, randomized, variables_of
from helpers.small_specs import EXTRA_SPECS, zoo_specs

from resflax import UserError, create_model
from resflax.inference import OPS, Graph, Node, build_graph, make_predictor
from resflax.inference.graph import JAX_ONLY
from resflax.inference.onednn_executor import NETWORK_OPS, OneDnnExecutor, onednn_reason_against
from resflax.kernels import network as onednn_network
from resflax.kernels import onednn


@pytest.fixture(autouse=True, scope="session")
def onednn_executor():
    """Compiles the executor when the first test runs, and skips all of them if that fails."""
    reason = onednn_network.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)


SPECS = {**zoo_specs(), **EXTRA_SPECS}
CONV = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": "none"}
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
    options = {**CONV, "padding": 1, "activation": "relu"}
    twice = rng.standard_normal((1, 1, widths[0], widths[1])).astype(np.float32)
    nodes = (
        Node("conv", "shortcut", ("image",), CONV, {"kernel": twice}),
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


def test_more_sizes_than_are_cached_in_threads():
    """kMaxPlans of network.cc is 64, and each size needs a plan or two."""
    nodes = (
        Node("conv", "conv", ("image",), CONV, {"kernel": np.full((1, 1, 1, 1), 2, np.float32)}),
        Node("mean", "mean", ("conv",), {}, {}),
    )
    run = OneDnnExecutor(Graph(nodes, "mean", 1, 1), "float32")
    sizes = [(n, side) for side in range(1, 81) for n in (1, 3)] * 2
    images = [np.random.default_rng(i).random((n, s, s + 1, 1)) for i, (n, s) in enumerate(sizes)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: np.asarray(run(x)), images))
    for x, y in zip(images, results, strict=True):
        np.testing.assert_allclose(y, 2 * x.mean((1, 2)), rtol=1e-6)


def resident_bytes():
    """Returns the physical memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_of_a_large_size_is_freed_when_it_is_evicted():
    model, variables, _ = network("cifar_resnet8")
    run = OneDnnExecutor(build_graph(model.spec, variables), "float32")
    run(np.zeros((1, 8, 8, 3), np.float32))
    before = resident_bytes()
    run(np.zeros((1, 1024, 1024, 3), np.float32))
    gc.collect()
    assert resident_bytes() - before > 64e6  # one feature map is 16 * 1024 * 1024 floats
    for side in range(8, 8 + 65):
        run(np.zeros((1, side, side, 3), np.float32))
    assert resident_bytes() - before < 32e6


def test_lack_of_memory_is_an_error():
    """In threads that run images of their own, and in those that share an image."""
    model, variables, _ = network("cifar_resnet8")
    run = OneDnnExecutor(build_graph(model.spec, variables), "float32")
    small, large = (np.zeros((8, side, side, 3), np.float32) for side in (8, 1024))
    expected = np.asarray(run(small))
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    try:
        limit = pages * resource.getpagesize() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
        for images in (large, large[:1]):
            with pytest.raises(ValueError, match="oneDNN: std::bad_alloc"):
                run(images)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    np.testing.assert_array_equal(run(small), expected)


def test_small_weights_take_little_memory():
    """109 of 110 convolutions have at most 0.6 MB of weights, even for Winograd's algorithm."""
    model, variables, x = network("cifar_resnet110", (1, 16, 16, 3))
    run = OneDnnExecutor(build_graph(model.spec, variables), "float32")
    before = resident_bytes()
    run(x)
    assert resident_bytes() - before < 80e6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet10t", "cifar_resnet8", "resnetv2_50x1_bit"])
def test_nan_in_an_image_gives_nan(name, dtype):
    model, variables, x = network(name, (3, 32, 32, 3))
    graph = build_graph(model.spec, variables)
    if onednn_reason_against(graph, dtype):
        pytest.skip(f"this CPU has no {dtype}")
    x[1, 5, 7, 0] = np.nan
    y = np.asarray(OneDnnExecutor(graph, dtype)(x))
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(y[[0, 2]]).all()
    if name == "resnet10t":  # XLA keeps NaN in maximum pooling; its relu need not
        expected = make_predictor(model.spec, variables, backend="jax", dtype=dtype)(x)
        assert np.array_equal(np.isnan(expected), np.isnan(y))


@pytest.mark.parametrize("op", ["max_pool", "affine", "add", "channel_conv"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loops_propagate_nan_of_weights(op, dtype):
    """NaN that arises within the network, here from a bias of the first operation."""
    if dtype == "bfloat16" and not onednn.supports(jnp.bfloat16):
        pytest.skip("this CPU has no bfloat16 instructions")
    shift = {"scale": np.ones(2, np.float32), "bias": np.array([np.nan, 0], np.float32)}
    affine = {"activation": "relu"}
    pool = {"window": 3, "stride": 2, "padding": 1, "zero_padding": False}
    last = {
        "max_pool": Node("max_pool", "op", ("nan",), pool, {}),
        "affine": Node(
            "affine", "op", ("nan",), affine, {**shift, "bias": np.zeros(2, np.float32)}
        ),
        "add": Node("add", "op", ("nan", "image"), affine, {}),
        "channel_conv": Node("mean", "op", ("nan",), {}, {}),
    }[op]
    nodes = [Node("affine", "nan", ("image",), affine, shift), last]
    if op == "channel_conv":
        kernel = {"kernel": np.ones(1, np.float32)}
        nodes.append(Node("channel_conv", "mean", ("op",), affine, kernel))
    else:
        nodes.append(Node("mean", "mean", ("op",), {}, {}))
    run = OneDnnExecutor(Graph(tuple(nodes), "mean", 2, 2), dtype)
    assert np.isnan(run(np.ones((2, 8, 8, 2), np.float32))).tolist() == [[True, False]] * 2


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
    assert set(OPS) - {"batch_norm", *JAX_ONLY} == set(NETWORK_OPS)
