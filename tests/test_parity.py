"""The zoo against timm and torchvision, as recorded in parity.json by tools/make_parity.py."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from helpers.networks import apply, variables_of
from helpers.parity_inputs import NUM_CLASSES, draw_array, draw_images, shapes_digest

from resflax import create_model, list_models
from resflax.nn.scan import parse_block_name
from resflax.weights import from_torch, to_torch
from resflax.weights.array_specs import array_specs
from resflax.weights.layouts import default_layout
from resflax.weights.shapes import variable_shapes
from resflax.weights.torch_reference import torch_logits
from resflax.zoo import get_spec

PARITY = json.loads(Path(__file__).with_name("parity.json").read_text())
CASES = PARITY["cases"]
CASE_NAMES = [case["name"] for case in CASES]


def spec_of(case):
    spec, overrides = get_spec(case["name"]), case["overrides"]
    if spec.pruned:
        stages = zip(spec.pruned, overrides["depths"], strict=True)
        overrides = overrides | {"pruned": [blocks[:depth] for blocks, depth in stages]}
    return spec.override(num_classes=NUM_CLASSES, **overrides)


@cache
def shallow(spec):
    shape = (1, *[64] * spec.dimensions, 3)
    return traverse_util.flatten_dict(variables_of(create_model(spec, scan=False), shape))


def fast_variable_shapes(spec):
    """Returns `variable_shapes(spec)`, tracing networks that differ only in depth once."""
    if spec.pruned:
        return variables_of(create_model(spec))
    flat = {}
    depths = tuple(min(depth, 2) for depth in spec.depths)
    for path, leaf in shallow(spec.override(depths=depths)).items():
        position = parse_block_name(path[1])
        if position is None:
            flat[path] = leaf
            continue
        stage, block = position
        for j in range(block, (spec.depths[stage - 1] if block == 2 else 1) + 1):
            flat[(path[0], f"stage{stage}_block{j}", *path[2:])] = leaf
    return traverse_util.unflatten_dict(flat)


def torch_shapes(spec, tree):
    """Returns state dict names and shapes in the default layout, batch counts included."""
    shapes = {s.key: s.shape for s in array_specs(default_layout(spec), spec, tree)}
    means = [key for key in shapes if key.endswith("running_mean")]
    return shapes | {key.replace("running_mean", "num_batches_tracked"): () for key in means}


def test_zoo_has_all_timm_and_torchvision_resnets():
    names = [name.split("/") for name in PARITY["networks"]]
    assert sum(source == "timm" for source, _ in names) == 104
    assert sum(source == "torchvision" for source, _ in names) == 13
    assert len({name for _, name in names}) == 107
    assert {name for _, name in names} <= {*list_models()}


@pytest.mark.parametrize("name", ["resnet101", "test_resnet", "resnetv2_152d", "seresnet269d"])
def test_fast_shapes_equal_variable_shapes(name):
    spec = get_spec(name)
    assert traverse_util.flatten_dict(fast_variable_shapes(spec)) == traverse_util.flatten_dict(
        variable_shapes(spec)
    )


@pytest.mark.slow
@pytest.mark.parametrize("network", PARITY["networks"])
def test_names_shapes_and_parameter_counts(network):
    spec, expected = get_spec(network.split("/")[1]), PARITY["networks"][network]
    tree = fast_variable_shapes(spec)
    assert sum(x.size for x in jax.tree.leaves(tree["params"])) == expected["parameters"]
    assert shapes_digest(torch_shapes(spec, tree)) == expected["arrays"]


@pytest.fixture(scope="module", params=CASES, ids=CASE_NAMES)
def net(request):
    """A case, its shallow spec and its state dict, shared by the tests of one network."""
    spec = spec_of(request.param)
    shapes = torch_shapes(spec, variable_shapes(spec))
    return request.param, spec, {key: draw_array(key, shape) for key, shape in shapes.items()}


@pytest.mark.slow
def test_logits_match_timm_and_torchvision(net):
    case, spec, arrays = net
    assert shapes_digest({key: array.shape for key, array in arrays.items()}) == case["arrays"]
    x = np.moveaxis(draw_images(case["size"]), 1, -1)
    logits = apply(create_model(spec), from_torch(spec, arrays), x)
    expected = np.array(case["logits"], np.float32)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_torch_reference_logits_match_the_same(net):
    """`resflax convert --verify` compares with this reference."""
    pytest.importorskip("torch")
    case, spec, arrays = net
    x = np.moveaxis(draw_images(case["size"]), 1, -1)
    logits = torch_logits(spec, from_torch(spec, arrays), x)
    expected = np.array(case["logits"], np.float32)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


WITH_MAPS = [case for case in CASES if "maps" in case]


@pytest.mark.slow
@pytest.mark.parametrize("net", WITH_MAPS, ids=[c["name"] for c in WITH_MAPS], indirect=True)
def test_feature_maps_match_timm(net):
    case, spec, arrays = net
    x = np.moveaxis(draw_images(case["size"]), 1, -1)
    model = create_model(spec, features_only=True)
    maps = apply(model, from_torch(spec, arrays), x)
    assert len(maps) == len(case["maps"]) == len(model.features)
    for features, expected in zip(maps, case["maps"], strict=True):
        features = np.asarray(features, np.float64).transpose(0, 3, 1, 2)
        assert list(features.shape) == expected["shape"]
        rms = expected["rms"]
        assert abs(np.sqrt(np.square(features).mean()) - rms) < 1e-5 * rms
        assert abs(features.mean() - expected["mean"]) < 1e-5 * rms


@pytest.mark.slow
def test_round_trip_is_exact(net):
    _, spec, arrays = net
    rng = np.random.default_rng(0)
    state = {
        key: rng.integers(1, 2**40, ()) if key.endswith("num_batches_tracked")
        else array.astype(np.float16 if rng.random() < 0.5 else np.float32)
        for key, array in arrays.items()
    }  # fmt: skip
    back = to_torch(spec, from_torch(spec, state))
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert (back[key].dtype, back[key].shape) == (array.dtype, array.shape)
        assert back[key].tobytes() == array.tobytes()
        assert back[key].flags.c_contiguous
