"""The inference form of networks matches `model.apply(train=False)`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import apply, randomized, run, variables_of
from helpers.small_specs import EXTRA_SPECS, shrink, zoo_specs
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax import UserError, create_model, list_models
from resflax.inference import OPS, apply_graph, build_graph, make_predictor
from resflax.inference.fold import batch_norm_affine
from resflax.inference.graph import JAX_ONLY
from resflax.inference.jax_executor import OPERATIONS
from resflax.inference.layers import NORM_NODES
from resflax.inference.parts import (
    ATTENTIONS,
    BLOCK_FILTERS,
    SHORTCUT_NODES,
    STEM_FILTERS,
    STEM_POOLS,
)
from resflax.nn import SHORTCUTS, STEMS
from resflax.nn.antialias import ANTIALIAS
from resflax.nn.attention import ATTENTION
from resflax.nn.norms import NORMS
from resflax.zoo import get_spec

SPECS = {**zoo_specs(), **EXTRA_SPECS}
# Every operation, and every shortcut, attention, norm and filter.
QUICK = ("blur", "plain_preact", "preact_se_A", "v1_frn", "pruned", "resnetv2_50d_evos",
         "resnetv2_50x1_bit", "dilated_average")  # fmt: skip
FULL_SIZE = ("resnet50", "resnetv2_50", "seresnext50_32x4d", "ecaresnet50d_pruned", "resnetrs50",
             "cifar_resnet110", "wrn16_4")  # fmt: skip


def network(spec, size=33, channels=3):
    """Returns a model, random variables and two random images."""
    model = create_model(spec, scan=False)
    variables = randomized(variables_of(model, (1, size, size, channels)))
    shape = (2, size, size, channels)
    return model, variables, np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def relative_error(value, expected):
    """Returns the largest difference over the largest expected value."""
    value, expected = np.asarray(value), np.asarray(expected)
    return np.abs(value - expected).max() / np.abs(expected).max()


def run_graph(graph, x, **options):
    return run(lambda arrays, x: apply_graph(graph, arrays, x, **options), graph.arrays, x)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SPECS]
)
def test_graph_matches_model(name):
    model, variables, x = network(SPECS[name])
    graph = build_graph(model.spec, variables)
    assert relative_error(run_graph(graph, x), apply(model, variables, x)) < 3e-6


@pytest.mark.parametrize("name", ["resnet1d18", "r2plus1d_18"])
def test_networks_of_signals_and_clips_match_model(name):
    spec = shrink(get_spec(name))
    shape = (2, *[9] * spec.dimensions, 3)
    model = create_model(spec, scan=False)
    variables = randomized(variables_of(model, shape))
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    graph = build_graph(spec, variables)
    assert relative_error(run_graph(graph, x), apply(model, variables, x)) < 3e-6
    predictor = make_predictor(spec, variables)
    assert f"no convolutions of {spec.dimensions} dimension" in predictor.describe_backend()
    with pytest.raises(ValueError, match=r"expected images of shape \(n, .*, 3\): got"):
        predictor(x[:, 0])


def count_weights(spec):
    """Returns the number of weights in the blocks' convolutions, without shortcuts."""
    count, channels = 0, spec.stem_width
    for block in (block for stage in spec.stages for block in stage):
        for row, out in zip(block.rows, block.channels, strict=True):
            count += channels * out * row.kernel**2 // (spec.groups if row.grouped else 1)
            channels = out
    return count


# Folding larger networks in float64 needs gigabytes of memory.
SMALL_NETWORKS = [
    name
    for name in list_models()
    if get_spec(name).dimensions == 2 and count_weights(get_spec(name)) < 4e7
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_zoo_builds_with_all_parameters_used(name):
    """On zeros: every array is read, and has the shape that its reader expects."""
    model = create_model(name, scan=False)
    shapes = variables_of(model, (1, 64, 64, 3))
    variables = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    graph = build_graph(model.spec, variables)
    assert graph.features == model.spec.num_classes
    out = jax.eval_shape(lambda a, x: apply_graph(graph, a, x), graph.arrays,
                         jnp.zeros((2, 64, 64, 3)))  # fmt: skip
    assert (out.shape, out.dtype) == ((2, graph.features), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_network_matches_model(name):
    model, variables, x = network(get_spec(name), size=64)
    predict = make_predictor(model.spec, variables)
    expected = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    assert relative_error(predict(x), expected) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "preact_se_A", "v1_evonorm"])
def test_graph_matches_model_in_float64(name):
    with jax.enable_x64(True):
        spec = SPECS[name]
        variables = jax.tree.map(np.float64, network(spec)[1])
        x = np.random.default_rng(0).standard_normal((2, 17, 17, 3))
        expected = apply(create_model(spec, scan=False, dtype="float64"), variables, x)
        predict = make_predictor(spec, variables, dtype="float64")
        assert predict(x).dtype == jnp.float64
        assert relative_error(predict(x), expected) < 1e-13


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18"])
def test_batch_norm_can_be_kept(name):
    model, variables, x = network(SPECS[name])
    unfolded = build_graph(model.spec, variables, fold=False)
    names = [node.name for node in unfolded.nodes if node.op == "batch_norm"]
    scales = [p for p, _ in jax.tree_util.tree_leaves_with_path(variables) if p[-1].key == "scale"]
    assert len(names) == len(scales)
    assert relative_error(run_graph(unfolded, x), apply(model, variables, x)) < 3e-6


def test_batch_norm_folds_in_float64():
    """float32 would lose the digits of a mean far larger than the standard deviation."""
    model, variables, _ = network(SPECS["cifar_resnet20"])
    stats, norm = variables["batch_stats"]["stem_norm"], variables["params"]["stem_norm"]
    stats["mean"] = stats["mean"] * 1e6
    node = build_graph(model.spec, variables).nodes[0]
    factor = norm["scale"].astype(np.float64) / np.sqrt(stats["var"].astype(np.float64) + 1e-5)
    bias = norm["bias"] - stats["mean"] * factor
    np.testing.assert_array_equal(node.arrays["bias"], bias.astype(np.float32))
    kernel = variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(node.arrays["kernel"], (kernel * factor).astype(np.float32))


def test_affine_of_batch_norm_is_that_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, (scale, bias, mean) = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))
    var = rng.uniform(0.1, 2, 3)
    folded = batch_norm_affine(scale, bias, mean, var, 1e-3)
    expected = torch.nn.functional.batch_norm(
        *map(torch.from_numpy, (x, mean, var, scale, bias)), eps=1e-3
    )
    np.testing.assert_allclose(x * folded.scale + folded.bias, expected, rtol=1e-12)


def test_graph_of_a_v1_network_is_convolutions_only():
    _, variables, _ = network(SPECS["resnet18"])
    ops = [node.op for node in build_graph(SPECS["resnet18"], variables).nodes]
    assert set(ops) == {"conv", "max_pool", "mean", "dense"}
    assert ops.count("conv") == 1 + 2 * 4 + 2  # two projections: the stem is wider than stage 1


@pytest.mark.parametrize("fold", [True, False])
def test_nodes_have_what_their_operation_lists(fold):
    seen = set()
    for name in (*QUICK, "v1_group"):
        spec = SPECS[name]
        variables = network(spec, size=17)[1]
        graph = build_graph(spec, variables, fold=fold, outputs="probabilities",
                            mean=(0.5,) * 3, std=(0.5,) * 3)  # fmt: skip
        defined = {graph.input}
        for node in graph.nodes:
            op = OPS[node.op]
            assert set(node.attributes) == set(op.attributes), (name, node.name)
            assert set(op.arrays) <= set(node.arrays), (name, node.name)
            assert set(node.arrays) <= {*op.arrays, *op.optional_arrays}, (name, node.name)
            assert all(a.dtype == np.float32 for a in node.arrays.values())
            assert set(node.inputs) <= defined, f"{node.name} reads what follows it"
            assert node.name not in defined
            defined.add(node.name)
            seen.add(node.op)
        assert graph.output in defined
    assert seen == set(OPS) - {*JAX_ONLY, "batch_norm" if fold else "affine"}
    assert set(OPERATIONS) == set(OPS)


def test_test_time_pooling_classifies_every_window():
    """In float64: the logits of windows of 2x3, and half their mean plus half their maximum."""
    model, variables, x = network(get_spec("cifar_resnet8"), size=20)
    features = apply(model.clone(out_indices=(3,)), variables, x)[0]
    head = variables["params"]["head"]
    windows = np.lib.stride_tricks.sliding_window_view(
        np.asarray(features, np.float64), (2, 3), axis=(1, 2)
    )
    logits = windows.mean((-2, -1)) @ head["kernel"].astype(np.float64) + head["bias"]
    assert logits.shape == (2, 4, 3, 10)
    expected = (logits.mean((1, 2)) + logits.max((1, 2))) / 2
    graph = build_graph(model.spec, variables, test_pool=(5, 9))
    assert relative_error(run_graph(graph, x), expected) < 1e-5
    whole = build_graph(model.spec, variables, test_pool=(20, 20))  # one window
    assert relative_error(run_graph(whole, x), apply(model, variables, x)) < 1e-5
    with pytest.raises(ValueError, match="the feature map of 5x5 is smaller than the windows"):
        run_graph(build_graph(model.spec, variables, test_pool=(21, 20)), x)


def test_test_time_pooling_needs_average_pooling_and_logits():
    model, variables, _ = network(get_spec("cifar_resnet8"), size=17)
    with pytest.raises(UserError, match="pooling 'avg' and shipped parts, not pooling 'max'"):
        build_graph(model.spec.override(pooling="max"), variables, test_pool=(8, 8))
    with pytest.raises(UserError, match="has no pooled features: use outputs='logits'"):
        build_graph(model.spec, variables, test_pool=(8, 8), outputs="features")


def test_every_row_of_the_networks_tables_is_interpreted():
    assert set(NORM_NODES) == set(NORMS)
    assert set(ATTENTIONS) == set(ATTENTION)
    assert set(STEM_FILTERS) == set(BLOCK_FILTERS) == set(ANTIALIAS)
    assert set(SHORTCUT_NODES) == {name for name, row in SHORTCUTS.items() if row.make}
    assert set(STEM_POOLS) == {stem.pool for stem in STEMS.values() if stem.pool}


def test_stacked_variables_are_accepted():
    scanned = create_model("cifar_resnet20", scan=True)
    variables = randomized(variables_of(scanned, (1, 32, 32, 3)))
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    graph = build_graph(scanned.spec, variables)
    assert relative_error(run_graph(graph, x), apply(scanned, variables, x)) < 3e-6


@pytest.mark.parametrize("channels", [1, 4])
def test_images_can_have_any_size_and_channels(channels):
    model, variables, _ = network(SPECS["resnet18"], channels=channels)
    predict = make_predictor(model.spec, variables)
    for shape in ((1, 40, 24), (3, 17, 31)):
        x = np.random.default_rng(0).standard_normal((*shape, channels)).astype(np.float32)
        assert relative_error(predict(x), apply(model, variables, x)) < 3e-6


def test_uint8_images_are_normalized():
    model, variables, _ = network(SPECS["cifar_resnet20"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    x = ((pixels / 255 - mean) / std).astype(np.float32)
    predict = make_predictor(model.spec, variables, mean=mean, std=std)
    expected = apply(model, variables, x)
    assert relative_error(predict(pixels), expected) < 3e-6
    assert relative_error(predict(x), expected) < 3e-6


def test_outputs_are_features_or_probabilities():
    model, variables, x = network(SPECS["resnetv2_18"])
    logits = apply(model, variables, x)
    head = variables["params"]["head"]
    features = make_predictor(model.spec, variables, outputs="features")(x)
    assert relative_error(features @ head["kernel"] + head["bias"], logits) < 3e-6
    body = create_model(model.spec, num_classes=0)
    params = {k: v for k, v in variables["params"].items() if k != "head"}
    headless = make_predictor(body.spec, {**variables, "params": params}, outputs="features")
    np.testing.assert_array_equal(headless(x), features)
    probabilities = make_predictor(model.spec, variables, outputs="probabilities")(x)
    assert relative_error(probabilities, jax.nn.softmax(logits)) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "v1_frn", "resnetv2_50d_gn"])
def test_bfloat16_matches_float32_to_its_precision(name):
    model, variables, x = network(SPECS[name])
    predict = make_predictor(model.spec, variables, dtype="bfloat16")
    value = predict(x)
    assert value.dtype == jnp.float32
    assert relative_error(value, apply(model, variables, x)) < 0.03


def test_ensemble_is_mapped_over_arrays():
    model, variables, x = network(SPECS["preact_se_A"])
    members = [variables, randomized(variables, seed=3)]
    graphs = [build_graph(model.spec, member) for member in members]
    arrays = jax.tree.map(lambda *a: np.stack(a), *(graph.arrays for graph in graphs))
    mapped = jax.vmap(lambda a, x: apply_graph(graphs[0], a, x), in_axes=(0, None))
    for value, member in zip(run(mapped, arrays, x), members, strict=True):
        assert relative_error(value, apply(model, member, x)) < 3e-6


def test_batch_can_be_sharded_over_a_mesh():
    model, variables, _ = network(SPECS["seresnet18"])
    predict = make_predictor(model.spec, variables)
    x = np.random.default_rng(0).standard_normal((16, 17, 17, 3)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    arrays = jax.device_put(predict.arrays, NamedSharding(mesh, PartitionSpec()))
    value = jax.jit(predict.apply)(arrays, sharded)
    assert value.sharding.spec == PartitionSpec("batch")
    assert relative_error(value, apply(model, variables, x)) < 3e-6


def test_graph_differentiates_as_the_model():
    model, variables, x = network(SPECS["resnetv2_18"], size=16)
    graph = build_graph(model.spec, variables)
    gradient = run(jax.grad(lambda x: apply_graph(graph, graph.arrays, x).sum()), x)
    expected = run(jax.grad(lambda x: model.apply(variables, x, train=False).sum()), x)
    assert relative_error(gradient, expected) < 1e-4


def without(variables, module):
    params = {k: v for k, v in variables["params"].items() if k != module}
    return {**variables, "params": params}


def test_variables_of_another_network_are_refused():
    spec = SPECS["resnet18"]
    _, variables, _ = network(spec)
    with pytest.raises(UserError, match="have no array params/stage2_block1/conv1/kernel"):
        build_graph(spec, without(variables, "stage2_block1"))
    with pytest.raises(UserError, match=r"no array .*stage2_block2/.* \(10 in all\)"):
        build_graph(spec.override(depths=(2, 1)), variables)
    with pytest.raises(UserError, match=r"kernel of stem_conv has shape \(7, 7, 3, 64\): expected"):
        build_graph(spec.override(stem_width=32), variables)


@pytest.mark.parametrize(
    ("options", "message"),
    {
        "outputs": ({"outputs": "maps"}, "unknown outputs 'maps'"),
        "dtype": ({"dtype": "int8"}, "unknown dtype 'int8'"),
        "no dtype": ({"dtype": "float12"}, "unknown dtype 'float12'"),
        "float64": ({"dtype": "float64"}, "needs 64-bit mode"),
        "backend": ({"backend": "tensorrt"}, "unknown backend 'tensorrt'"),
        "mean": ({"mean": (0.5,) * 3}, "std is None: expected one of each per channel"),
        "channels": ({"mean": (0.5,), "std": (0.5,)}, "expected one of each per channel, 3"),
    }.values(),
)
def test_invalid_options_are_refused(options, message):
    _, variables, _ = network(SPECS["cifar_resnet20"])
    with pytest.raises(UserError, match=message):
        make_predictor(SPECS["cifar_resnet20"], variables, **options)


def test_logits_need_a_head():
    _, variables, _ = network(SPECS["cifar_resnet20"])
    with pytest.raises(UserError, match="the network has no head"):
        build_graph(SPECS["cifar_resnet20"].override(num_classes=0), without(variables, "head"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "expected images of shape"),
        (np.zeros((1, 8, 8, 1), np.float32), r"\(n, height, width, 3\): got \(1, 8, 8, 1\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), "images are uint8: expected normalized .* mean and std"),
        (np.zeros((1, 8, 8, 3), np.int32).tolist(), "images are int64: expected normalized"),
    ],
)
def test_invalid_images_are_refused(images, message):
    _, variables, _ = network(SPECS["cifar_resnet20"])
    predict = make_predictor(SPECS["cifar_resnet20"], variables)
    with pytest.raises(ValueError, match=message):
        predict(images)
