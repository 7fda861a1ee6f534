"""Torch state dicts to variables and back: names, strict errors, exact values."""

import re

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import traverse_util
from helpers.networks import randomized
from hypothesis import given, settings

from resflax import UserError
from resflax.nn import Spec, stack_params
from resflax.weights import from_torch, replace_head, to_torch
from resflax.weights.bridge import flatten, is_flat, unflatten
from resflax.weights.layouts import LAYOUTS, default_layout
from resflax.weights.shapes import variable_shapes
from resflax.zoo import create_model, get_spec
from resflax.zoo.nfnet import NORMALIZER_FREE

SMALL = {"depths": (1, 2), "widths": (8, 16), "stem_width": 8, "num_classes": 5}
BASIC = Spec(**SMALL, block="basic", stem="cifar", shortcut="B")
ALL = {*LAYOUTS} - {"timm_nf"}  # which has no norms
# Specs, each with the layouts that can name its modules.
SPECS = {
    "cifar": (BASIC, ALL),
    "option A": (BASIC.override(shortcut="A"), ALL),
    "bottleneck": (Spec(**SMALL), ALL),
    "deep": (Spec(**SMALL, stem="deep", shortcut="D", attention="eca"), {"timm", "sequential"}),
    "rs": (Spec(**SMALL, stem="rs", shortcut="D", attention="se_rs"), {"timm", "sequential"}),
    "preact": (Spec(**SMALL, preact=True), {"timm_v2"}),
    "normalizer-free": (Spec(**SMALL, **NORMALIZER_FREE), {*LAYOUTS}),
    "frn": (Spec(**SMALL, preact=True, stem="deep", shortcut="D", norm="frn_tlu"), {"timm_v2"}),
}
every_spec = pytest.mark.parametrize(("spec", "layouts"), SPECS.values(), ids=SPECS)


def variables_of(spec, seed=0):
    return randomized(variable_shapes(spec), seed)


def assert_same(actual, expected):
    actual, expected = (traverse_util.flatten_dict(tree) for tree in (actual, expected))
    assert actual.keys() == expected.keys()
    for path, array in expected.items():
        value = np.asarray(actual[path])
        assert (value.dtype, value.shape) == (np.asarray(array).dtype, array.shape)
        assert value.tobytes() == np.asarray(array).tobytes()


def norms(*modules):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{module}.{leaf}" for module in modules for leaf in leaves}


def test_layout_names_match_published_state_dicts():
    variables = variables_of(BASIC)
    names = {layout: {*to_torch(BASIC, variables, layout=layout)} for layout in ALL}
    blocks = ("layer1.0", "layer2.0", "layer2.1")
    convs = {f"{block}.conv{i}.weight" for block in blocks for i in (1, 2)}
    common = (
        {"conv1.weight"} | convs | norms("bn1", *(f"{b}.bn{i}" for b in blocks for i in (1, 2)))
    )
    assert names["cifar"] == (
        common | {"linear.weight", "linear.bias", "layer2.0.shortcut.0.weight"}
        | norms("layer2.0.shortcut.1")
    )  # fmt: skip
    timm = common | {"fc.weight", "fc.bias", "layer2.0.downsample.0.weight"}
    timm |= norms("layer2.0.downsample.1")
    counts = {k.replace("running_mean", "num_batches_tracked") for k in timm if "_mean" in k}
    assert names["timm"] == timm | counts
    assert {
        "resnet.embedder.embedder.convolution.weight",
        "resnet.embedder.embedder.normalization.running_var",
        "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight",
        "resnet.encoder.stages.1.layers.0.shortcut.normalization.num_batches_tracked",
        "resnet.encoder.stages.1.layers.1.layer.1.convolution.weight",
        "resnet.encoder.stages.0.layers.0.layer.0.normalization.weight",
        "classifier.1.bias",
    } <= names["huggingface"]


# Names of torchvision's ResNet, and their positions in its `children()`.
CHILDREN = {
    "conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7", "fc": "9",
}  # fmt: skip


@pytest.mark.parametrize("children", [None, -1, -2])
@pytest.mark.parametrize("prefix", ["", "features.", "module.0."])
def test_sequential_of_the_children_is_read(children, prefix):
    spec = Spec((1, 1, 1, 1), (8, 8, 16, 16), block="basic", stem_width=8, num_classes=5)
    variables = variables_of(spec)
    state = {
        f"{prefix}{CHILDREN[module]}.{rest}": array
        for key, array in to_torch(spec, variables).items()
        for module, _, rest in [key.partition(".")]
        if children is None or module != "fc"
    }
    if children:
        spec = spec.override(num_classes=0)
        del variables["params"]["head"]
    assert_same(from_torch(spec, state), variables)


@pytest.mark.slow
@every_spec
def test_every_layout_is_detected_and_round_trips_exactly(spec, layouts):
    variables = variables_of(spec)
    for layout in layouts:
        state = to_torch(spec, variables, layout=layout)
        assert all(array.flags.c_contiguous for array in state.values())
        for prefix in ("", "module.", "_orig_mod."):
            prefixed = {prefix + key: array for key, array in state.items()}
            assert_same(from_torch(spec, prefixed), variables)
    default = to_torch(spec, variables)
    assert default.keys() == to_torch(spec, variables, layout=default_layout(spec)).keys()
    assert default_layout(spec) in layouts


@every_spec
def test_layout_without_names_for_a_module_is_rejected(spec, layouts):
    for layout in LAYOUTS.keys() - layouts:
        with pytest.raises(UserError, match=f"layout '{layout}' has no name for "):
            to_torch(spec, variables_of(spec), layout=layout)
    with pytest.raises(UserError, match="unknown layout 'keras': expected one of timm, timm_v2"):
        to_torch(spec, variables_of(spec), layout="keras")


def test_network_without_a_layout_has_no_torch_names():
    spec = Spec(**SMALL, preact=True, attention="se")
    variables = variables_of(spec)
    with pytest.raises(UserError, match="layout 'timm_v2' has no name for stage1_block1/se_fc1"):
        from_torch(spec, {"conv1.weight": np.ones(3)})
    with pytest.raises(UserError, match="layout 'timm_v2' has no name for"):
        to_torch(spec, variables)
    assert_same(unflatten(spec, flatten(variables)), variables)


def test_only_kernels_are_transposed():
    state = to_torch(BASIC, variables_of(BASIC))
    params = from_torch(BASIC, state)["params"]
    kernel, torch_kernel = params["stem_conv"]["kernel"], state["conv1.weight"]
    assert kernel[2, 0, 1, 7] == torch_kernel[7, 1, 2, 0]
    assert params["head"]["kernel"][3, 4] == state["linear.weight"][4, 3]
    assert (params["stem_norm"]["scale"] == state["bn1.weight"]).all()


STATE = to_torch(BASIC, variables_of(BASIC))


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_one_error_counts_missing_unexpected_and_wrong_shapes(data):
    keys = sorted(STATE)
    missing = data.draw(st.sets(st.sampled_from(keys), max_size=6))
    reshaped = data.draw(
        st.sets(st.sampled_from([k for k in keys if k not in missing]), max_size=4)
    )
    names = st.text("abc.", min_size=1, max_size=9).filter(lambda name: name != "...")
    extra = data.draw(st.sets(names, max_size=3))
    state = {key: array[None] if key in reshaped else array for key, array in STATE.items()}
    state = {key: array for key, array in state.items() if key not in missing}
    state |= {key: np.zeros(1) for key in extra}
    if not missing | reshaped | extra:
        assert_same(from_torch(BASIC, state), variables_of(BASIC))
        return
    with pytest.raises(UserError) as e:
        from_torch(BASIC, state)
    message = str(e.value)
    assert "\n" not in message
    counts = {
        f"{len(missing)} of {len(STATE)} missing: ": missing,
        f"{len(extra)} unexpected: ": extra,
        f"{len(reshaped)} of another shape: ": {
            f"{k} has shape {(1, *STATE[k].shape)}, expected {STATE[k].shape}" for k in reshaped
        },
    }
    for title, names in counts.items():
        assert (title in message) == bool(names)
        if names:
            assert sum(name in message.split(title)[1] for name in names) >= min(len(names), 3)
            assert (", ..." in message.split(title)[1].split("; ")[0]) == (len(names) > 3)


def test_error_names_the_network_in_one_line():
    state = to_torch("cifar_resnet8", variables_of(get_spec("cifar_resnet8")))
    state["linear.bias"] = np.zeros(3, np.float32)
    del state["bn1.weight"]
    with pytest.raises(UserError) as e:
        from_torch("cifar_resnet8", state)
    assert str(e.value) == (
        "not a state dict of cifar_resnet8: 1 of 37 missing: bn1.weight; 1 of another shape:"
        " linear.bias has shape (3,), expected (10,)"
    )


def test_batch_counts_are_optional_and_kept_if_nonzero():
    spec = SPECS["bottleneck"][0]
    variables = variables_of(spec)
    state = to_torch(spec, variables)
    counts = [key for key in state if key.endswith("num_batches_tracked")]
    assert len(counts) == 1 + 3 * 3 + 2
    assert all(state[key].dtype == np.int64 and state[key] == 0 for key in counts)
    without = {key: array for key, array in state.items() if key not in counts}
    assert from_torch(spec, without).keys() == {"params", "batch_stats"}
    counted = state | {key: np.array(2**40 + i) for i, key in enumerate(sorted(counts))}
    variables = from_torch(spec, counted)
    assert sorted(counts)[0] == "bn1.num_batches_tracked"
    assert variables["num_batches_tracked"]["stem_norm"]["count"] == 2**40
    back = to_torch(spec, variables)
    assert back.keys() == counted.keys()
    assert all((back[key] == counted[key]).all() for key in counted)
    flat = to_torch(spec, unflatten(spec, flatten(variables)))
    assert all(flat[key].shape == () and flat[key] == counted[key] for key in counts)


def test_overrides_are_fields_of_the_spec():
    state = to_torch("cifar_resnet8", variables_of(get_spec("cifar_resnet8")))
    state["linear.weight"], state["linear.bias"] = np.ones((7, 64)), np.ones(7)
    with pytest.raises(
        UserError, match=re.escape("linear.weight has shape (7, 64), expected (10, 64)")
    ):
        from_torch("cifar_resnet8", state)
    variables = from_torch("cifar_resnet8", state, num_classes=7)
    assert variables["params"]["head"]["kernel"].shape == (64, 7)
    assert to_torch("cifar_resnet8", variables, num_classes=7).keys() == state.keys()
    with pytest.raises(UserError, match="unknown field 'classes'"):
        from_torch("cifar_resnet8", state, classes=7)
    headless = {key: array for key, array in state.items() if not key.startswith("linear")}
    assert "head" not in from_torch("cifar_resnet8", headless, num_classes=0)["params"]


def test_any_number_of_channels_is_supported():
    variables = randomized(variable_shapes(BASIC, 1))
    state = to_torch(BASIC, variables)
    assert state["conv1.weight"].shape == (8, 1, 3, 3)
    assert_same(from_torch(BASIC, state, channels=1), variables)
    with pytest.raises(UserError, match=re.escape("conv1.weight has shape (8, 1, 3, 3), expec")):
        from_torch(BASIC, state)


@pytest.mark.slow
@every_spec
def test_stacked_variables_are_accepted(spec, layouts):
    spec = spec.override(depths=(1, 3))
    variables = variables_of(spec)
    stacked = stack_params(variables)
    assert "stage2_rest" in stacked["params"]
    assert_same(to_torch(spec, stacked), to_torch(spec, variables))
    assert {*flatten(stacked)} == {*flatten(variables)}


@every_spec
def test_flatten_round_trip_is_exact(spec, layouts):
    flat = flatten(variables_of(spec))
    assert flat.keys() == {"/".join(p) for p in traverse_util.flatten_dict(variable_shapes(spec))}
    assert is_flat(flat)
    assert not is_flat(to_torch(spec, variables_of(spec)))
    assert_same(unflatten(spec, flat), variables_of(spec))
    del flat["params/head/bias"]
    flat["params/other"] = flat["params/head/kernel"] = np.zeros((2, 2))
    with pytest.raises(UserError) as e:
        unflatten(spec, flat)
    assert "missing: params/head/bias; 1 unexpected: params/other; 1 of another shape:" in str(
        e.value
    )
    assert "params/head/kernel has shape (2, 2)" in str(e.value)


def test_variables_of_another_network_are_rejected():
    variables = variables_of(BASIC)
    with pytest.raises(UserError, match="not variables of cifar_resnet8: .* missing: batch"):
        to_torch("cifar_resnet8", variables)
    with pytest.raises(UserError, match="16 of 42 missing: batch_stats/stage1_block1/norm1/mean"):
        to_torch(BASIC, {"params": variables["params"]})


@pytest.mark.slow
def test_replace_head_changes_only_the_head():
    variables = variables_of(BASIC)
    original = jax.tree.map(lambda x: x.copy(), variables)
    replaced = replace_head(variables, 9, seed=1)
    head = replaced["params"]["head"]
    assert (head["kernel"].shape, head["bias"].shape) == ((16, 9), (9,))
    assert {array.dtype for array in head.values()} == {np.dtype(np.float32)}
    assert np.unique(head["kernel"]).size > 100
    assert not head["bias"].any()
    assert_same(variables, original)
    old_head = original["params"]["head"]
    assert_same({**replaced, "params": {**replaced["params"], "head": old_head}}, original)
    other = replace_head(variables, 9, seed=2)["params"]["head"]
    assert (head["kernel"] != other["kernel"]).all()


@pytest.mark.slow
def test_from_torch_stacks_variables_of_a_scanned_model():
    name = "cifar_resnet110"
    flat = variables_of(get_spec(name))
    state_dict = to_torch(name, flat)
    model = create_model(name)
    assert model.scan
    variables = from_torch(name, state_dict)
    x = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    back = to_torch(name, variables)
    assert back.keys() == state_dict.keys()
    assert all(back[key].tobytes() == state_dict[key].tobytes() for key in back)
    assert "stage1_block2" in from_torch(name, state_dict, scan=False)["params"]
