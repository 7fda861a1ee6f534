"""The networks against timm's and torchvision's own, as tests/make_parity.py wrote them down."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from helpers.networks import apply, variables_of
from make_parity import CLASSES, digest, drawn, images

from resflax import create_model, list_models
from resflax.nn.scan import parse_block_name
from resflax.weights import from_torch, to_torch
from resflax.weights.bridge import shapes_of
from resflax.weights.layouts import default_layout, slots
from resflax.weights.torch_reference import torch_logits
from resflax.zoo import get_spec

PARITY = json.loads(Path(__file__).with_name("parity.json").read_text())
CASES = PARITY["cases"]
NAMED = [case["name"] for case in CASES]


def spec_of(case):
    spec, overrides = get_spec(case["name"]), case["overrides"]
    if spec.pruned:
        kept = zip(spec.pruned, overrides["depths"], strict=True)
        overrides = overrides | {"pruned": [blocks[:depth] for blocks, depth in kept]}
    return spec.override(num_classes=CLASSES, **overrides)


@cache
def shallow(spec):
    return traverse_util.flatten_dict(variables_of(create_model(spec, scan=False)))


def shapes(spec):
    """`shapes_of(spec)`, of which nets that differ in depth alone share the tracing."""
    if spec.pruned:
        return variables_of(create_model(spec))
    found = {}
    depths = tuple(min(depth, 2) for depth in spec.depths)
    for path, leaf in shallow(spec.override(depths=depths)).items():
        place = parse_block_name(path[1])
        if place is None:
            found[path] = leaf
            continue
        stage, block = place
        for j in range(block, (spec.depths[stage - 1] if block == 2 else 1) + 1):
            found[(path[0], f"stage{stage}_block{j}", *path[2:])] = leaf
    return traverse_util.unflatten_dict(found)


def theirs(spec, tree):
    """Names and shapes of a network in its layout, counts of batches included."""
    named = {slot.key: slot.shape for slot in slots(default_layout(spec), spec, tree)}
    means = [key for key in named if key.endswith("running_mean")]
    return named | {key.replace("running_mean", "num_batches_tracked"): () for key in means}


def test_all_111_are_in_the_zoo():
    names = [name.split("/") for name in PARITY["networks"]]
    assert sum(source == "timm" for source, _ in names) == 101
    assert sum(source == "torchvision" for source, _ in names) == 10
    assert {name for _, name in names} <= {*list_models()}


@pytest.mark.parametrize("name", ["resnet101", "test_resnet", "resnetv2_152d", "seresnet269d"])
def test_deeper_nets_have_more_of_the_same_blocks(name):
    """What `shapes` takes for granted."""
    spec = get_spec(name)
    assert traverse_util.flatten_dict(shapes(spec)) == traverse_util.flatten_dict(shapes_of(spec))


@pytest.mark.parametrize("network", PARITY["networks"])
def test_names_shapes_and_parameters_are_those_of(network):
    spec, expected = get_spec(network.split("/")[1]), PARITY["networks"][network]
    tree = shapes(spec)
    assert sum(x.size for x in jax.tree.leaves(tree["params"])) == expected["parameters"]
    assert digest(theirs(spec, tree)) == expected["arrays"]


@pytest.fixture(scope="module", params=CASES, ids=NAMED)
def net(request):
    """A shallow net with drawn arrays, which the tests of one net share."""
    spec = spec_of(request.param)
    named = theirs(spec, shapes_of(spec))
    return request.param, spec, {key: drawn(key, shape) for key, shape in named.items()}


def test_logits_are_timms(net):
    case, spec, arrays = net
    assert digest({key: array.shape for key, array in arrays.items()}) == case["arrays"]
    x = images(case["size"]).transpose(0, 2, 3, 1)
    found = apply(create_model(spec), from_torch(spec, arrays), x)
    expected = np.array(case["logits"], np.float32)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_second_statement_in_pytorch_gives_timms_logits(net):
    """What `convert --verify` holds our networks against."""
    pytest.importorskip("torch")
    case, spec, arrays = net
    x = images(case["size"]).transpose(0, 2, 3, 1)
    found = torch_logits(spec, from_torch(spec, arrays), x)
    expected = np.array(case["logits"], np.float32)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


WITH_MAPS = [case for case in CASES if "maps" in case]


@pytest.mark.parametrize("net", WITH_MAPS, ids=[c["name"] for c in WITH_MAPS], indirect=True)
def test_maps_of_features_are_timms(net):
    case, spec, arrays = net
    x = images(case["size"]).transpose(0, 2, 3, 1)
    model = create_model(spec, features_only=True)
    maps = apply(model, from_torch(spec, arrays), x)
    assert len(maps) == len(case["maps"]) == len(model.features)
    for found, expected in zip(maps, case["maps"], strict=True):
        found = np.asarray(found, np.float64).transpose(0, 3, 1, 2)
        assert list(found.shape) == expected["shape"]
        rms = expected["rms"]
        assert abs(np.sqrt(np.square(found).mean()) - rms) < 1e-5 * rms
        assert abs(found.mean() - expected["mean"]) < 1e-5 * rms


def test_there_and_back_is_the_same_bit_for_bit(net):
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
