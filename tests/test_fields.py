"""Fields of `Spec`: names, rows and functions."""

import json
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import apply, randomized, variables_of
from helpers.workdirs import CONFIG, SavedStep, variables_at, write_workdir

from resflax import UserError, create_model, load_pretrained
from resflax.cli.main import main
from resflax.export.onnx import to_onnx
from resflax.inference import build_graph, make_predictor
from resflax.nn import ACTIVATIONS, BLOCKS, SHORTCUTS, STEMS, ConvRow, Gate, ResNet, Spec
from resflax.nn.antialias import AntiAlias
from resflax.nn.attention import ATTENTION
from resflax.nn.field_table import FIELDS
from resflax.nn.gates import learned_scale
from resflax.nn.heads import linear
from resflax.nn.norms import NormRow
from resflax.nn.orders import NORM, NORM_ACT, Order
from resflax.nn.shortcuts import ShortcutRow
from resflax.nn.stems import Stem, StemConv
from resflax.train import default_config, fit
from resflax.train.config import build_model
from resflax.weights import Preprocess, PretrainedConfig, from_torch, to_torch
from resflax.weights.pretrained_config import read_config
from resflax.weights.torch_reference import TorchResNet, torch_logits

SMALL = {"depths": (2, 2), "widths": (8, 16), "stem": "cifar", "stem_width": 8, "num_classes": 5}
IMAGES = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)


def small(**fields):
    return create_model(Spec(**(SMALL | {"block": "basic"} | fields)))


def gate(ops, x, channels):
    y = ops.dense(jnp.mean(x, tuple(range(1, x.ndim - 1))), x.shape[-1], name="gate")
    return x * jax.nn.sigmoid(y)[:, None, None]


def layer_norm(ops, x, *, name, zero=False):
    init = nn.initializers.zeros if zero else nn.initializers.ones
    return nn.LayerNorm(dtype=ops.dtype, scale_init=init, name=name)(x)


def mix(ops, x, channels):
    return ops.conv(x, x.shape[-1], 1, name="mix")


def extra_norm(ops, x, *, name, zero=False):
    return layer_norm(ops, nn.LayerNorm(name=f"{name}_extra")(x), name=name, zero=zero)


def patches(ops, x, features):
    return ops.norm_act(ops.conv(x, features, 3, 4, name="patches"), name="patches_norm")


def wide(ops, x, features, stride):
    y = ops.act(ops.conv(x, 4 * features, 1, name="expand"))
    return ops.norm(ops.conv(y, features, 3, stride, name="reduce"), name="norm", zero=True)


def project(ops, x, features, stride):
    return ops.conv(x, features, 1, stride, name="W")


def every_second(ops, x, stride):
    return x[:, ::stride, ::stride]


def largest(ops, x):
    return jnp.max(x, (1, 2))


def two_heads(ops, x, features):
    return ops.dense(x, features, name="head"), ops.dense(x, 1, name="score")


def half(h, y, s):
    return (y + s) / 2


FUNCTIONS = {
    "gate": half,
    "attention": gate,
    "norm": layer_norm,
    "stem": patches,
    "block": wide,
    "shortcut": project,
    "antialias": every_second,
    "activation": jnp.sin,
    "pooling": largest,
    "head": two_heads,
}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("field", FUNCTIONS)
def test_field_takes_a_function(field, scan):
    model = small(**{field: FUNCTIONS[field]}, depths=(3, 3)).clone(scan=scan)
    variables = variables_of(model, IMAGES.shape)
    outputs = jax.eval_shape(lambda v: model.apply(v, IMAGES, train=False), variables)
    shapes = [(2, 5), (2, 1)] if field == "head" else [(2, 5)]
    assert [leaf.shape for leaf in jax.tree.leaves(outputs)] == shapes
    own = {"attention": "gate", "block": "expand", "shortcut": "W"}.get(field)
    paths = ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(variables)]
    assert own is None or any(f"/{own}/" in path for path in paths)


def test_every_field_that_takes_functions_is_tested():
    assert {field for field, row in FIELDS.items() if row.call} == {*FUNCTIONS, "conv"}


def convolve(x, kernel, *args, **kwargs):
    return 2 * jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)


def test_convolution_field_takes_a_function():
    plain, twice = (small(conv=conv, num_classes=0) for conv in ("plain", convolve))
    variables = randomized(variables_of(plain, IMAGES.shape))
    assert not np.allclose(apply(plain, variables, IMAGES), apply(twice, variables, IMAGES))


def test_stride_of_a_stem_is_found():
    spec = small(stem=patches).spec
    assert [f.stride for f in spec.features] == [4, 4, 8]


@pytest.mark.parametrize(
    ("field", "row", "name"),
    [
        ("attention", ATTENTION["eca"], "eca"),
        ("shortcut", SHORTCUTS["C"], "C"),
        ("stem", STEMS["deep"], "deep"),
        ("block", BLOCKS["bottleneck"], "bottleneck"),
        ("block", [ConvRow(3, strided=True), ConvRow(3, expansion=1)], "basic"),
        ("activation", jax.nn.relu, "relu"),
    ],
)
def test_shipped_row_becomes_its_name(field, row, name):
    assert getattr(small(**{field: row}).spec, field) == name


def test_blocks_can_differ_by_stage():
    rows = (ConvRow(3, strided=True), ConvRow(5), ConvRow(3, expansion=1))
    spec = small(block=(rows, wide)).spec
    first, second = (stage[0] for stage in spec.stages)
    assert (first.rows, first.channels) == (rows, (8, 8, 8))
    assert (second.rows, second.channels, second.geometry.stride) == ((), (16,), 2)
    graph = build_graph(*initialized(small(block=rows)))
    assert [n.arrays["kernel"].shape[0] for n in graph.nodes if "block1/conv" in n.name] == [
        3, 5, 3, 3, 5, 3,
    ]  # fmt: skip


def initialized(model):
    return model.spec, randomized(variables_of(model, IMAGES.shape))


@pytest.mark.parametrize(
    ("activation", "preact"),
    [*((name, False) for name in ACTIVATIONS if name != "relu"), ("silu", True)],
)
def test_activation_replaces_every_relu(activation, preact):
    model = small(activation=activation, preact=preact, depths=(1,), widths=(8,), num_classes=0)
    spec, variables = initialized(model)
    jaxpr = str(jax.make_jaxpr(lambda x: model.apply(variables, x, train=False))(IMAGES))
    assert "jit[name=relu " not in jaxpr
    expected = apply(model, variables, IMAGES)
    predict = make_predictor(spec, variables, outputs="features")
    np.testing.assert_allclose(predict(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("attention", lambda x: x, r"attention is \S+\(x\): .*none, se, .* \(ops, x, channels\)"),
        ("attention", 3, r"attention is 3: expected one of none, .* or a function \(ops, x, chan"),
        ("norm", nn.LayerNorm, r"norm is flax\S+LayerNorm.*, or a row, NormRow, or a function"),
        (
            "block",
            (),
            r"block is \(\): expected one of basic, .* a tuple of ConvRow, or a func",
        ),
        # Text is imported in configs only.
        ("stem", "math:sqrt", "unknown stem 'math:sqrt'"),
        (
            "block",
            (ConvRow(3), ConvRow(3)),
            r"\(1, 1\), and its stage by 2: expected one ConvRow w",
        ),
        ("block", (ConvRow(3, strided=True),) * 2, r"strides by \(4, 4\), and its stage by 2"),
        (
            "block",
            (ConvRow((3, 3), strided=True), ConvRow((3, 3, 3), expansion=1)),
            "has kernels of 3 dimensions, but dimensions is 2",
        ),
        (
            "order",
            Order(last=("act", "norm")),
            r"order has last=\('act', 'norm'\): expected one of",
        ),
        ("order", Order(post=["norm"]), r"order has post=\['norm'\]: expected one of \(\)"),
        ("ensemble", gate, "ensemble is .*: expected one of none, batch, packed, mimo, or a row"),
        (
            "block",
            (ConvRow(4, strided=True),),
            r"block has ConvRow\(kernel=4, .* expected an odd i",
        ),
        ("block", (ConvRow(3, expansion=0.5),), "with expansion 0.5: expected a positive integer"),
        ("block", (ConvRow(3, divisor=0),), "with divisor 0: expected a positive integer"),
        ("block", (ConvRow(3, grouped=1),), "with grouped 1: expected True or False"),
        ("stem", Stem(()), r"stem is Stem\(convs=\(\)\): expected one StemConv or more"),
        ("stem", Stem((StemConv(3, (1, 2, 1)),)), r"StemConv\(.*with stride \(1, 2, 1\): expected"),
        ("stem", Stem([StemConv(3)]), r"stem is Stem\(.*such as tuples in place of lists"),
        ("stem", Stem((StemConv(3),), 3), "expected pool to be a function .ops, x, antialias"),
        ("shortcut", ShortcutRow(3), "expected make to be a function .ops, geometry, .*norm"),
        ("gate", Gate(half), r"gate is Gate\(combine=test_fields:half\): .* \(h, y, s, keys\)"),
        ("gate", Gate(lambda h, y, s, keys: y, alpha="1"), "with alpha '1': expected a number fr"),
        ("antialias", AntiAlias(None), r"AntiAlias\(pool=None\): expected pool to be a function"),
        ("norm", NormRow(None), r"norm is NormRow\(make=None\): expected make or function"),
    ],
)
def test_invalid_value_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        small(**{field: value})


def test_config_imports_functions():
    config = default_config()
    config.spec.attention = "test_fields:gate"
    assert build_model(config).spec.attention is gate
    config.spec.attention = "no_module:f"
    with pytest.raises(UserError, match="cannot import 'no_module:f': No module .*, or pass the f"):
        build_model(config)


@pytest.mark.parametrize(
    "order", [Order(pre=NORM_ACT, last=NORM), Order(last=NORM, post=NORM_ACT), Order(NORM, NORM)]
)
def test_norms_of_any_order_have_their_own_names(order):
    model = small(order=order)
    spec, variables = initialized(model)
    names = [name for name in variables["params"]["stage1_block1"] if name.startswith("norm")]
    assert len(names) == 1 + sum("norm" in steps for steps in order)
    predict = make_predictor(spec, variables)
    np.testing.assert_allclose(predict(IMAGES), apply(model, variables, IMAGES), atol=1e-4)


def test_kernels_of_one_size_per_axis_are_predicted_with():
    rows = (ConvRow((1, 3), strided=True), ConvRow((3, 1), strided=True, expansion=1))
    model = small(block=rows)
    spec, variables = initialized(model)
    assert spec.features[-1].stride == 2
    predict = make_predictor(spec, variables)
    np.testing.assert_allclose(predict(IMAGES), apply(model, variables, IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("field", "function", "message"),
    [
        ("attention", lambda ops, x, channels: x[:, 1:], r"returns shape \(1, 7, 8, 8\) for x of"),
        ("pooling", lambda ops, x: x, r"returns shape \(1, 4, 4, 16\) .*: .*shape \(1, any\)"),
        ("activation", lambda x: None, r"returns NoneType for x of shape \(1, 8, 8, 8\)"),
        ("shortcut", lambda ops, x, features, stride: x @ jnp.ones((3, 3)),
         r"fails on x of shape \(1, 8, 8, 8\): TypeError: .*; expected \(ops, x, features, str"),
        ("conv", lambda x, kernel, *args, **kwargs: x, r"returns shape \(1, 8, 8, 3\) for x of sh"),
        ("head", lambda ops, x, features: (x, None, x[0]),
         r"returns tuple .*: expected an array of shape \(1, ...\), from \(ops, x, features\)"),
        ("norm", lambda ops, x, *, name, zero: x[..., :1], r"returns shape \(1, 8, 8, 1\) for x"),
        ("stem", lambda ops, x, features: x, r"returns shape \(1, 64, 64, 3\) for x of shape"),
        ("block", lambda ops, x, features, stride: x, r"returns shape .*8, 8\) .*\(1, 4, 4, 16\)"),
    ],
)  # fmt: skip
def test_error_has_field_and_shape(field, function, message):
    with pytest.raises(UserError, match=f"^{field} test_fields:<lambda> {message}"):
        variables_of(small(**{field: function}), (1, 8, 8, 3))


@pytest.mark.parametrize(
    ("field", "row", "message"),
    [
        ("gate", Gate(lambda h, y, s, keys: (s, y)), "returns tuple for h of shape .1, 8, 8, 8.: "),
        ("shortcut", ShortcutRow(lambda ops, geometry, norm: 1 / 0), "fails: ZeroDivisionError: "),
        ("shortcut", ShortcutRow(lambda ops, geometry, norm: 3),
         r"returns int: expected \(ops, geometry, \*, norm\) -> function \(h, shape\)"),
        ("shortcut", ShortcutRow(lambda ops, geometry, norm: lambda h, shape: h),
         r"returns shape \(1, 8, 8, 8\) for h of shape \(1, 8, 8, 8\): expected .*\(1, 4, 4, 16\)"),
        ("antialias", AntiAlias(lambda ops, x: x, lambda ops, x, stride: x),
         r"returns shape \(1, 8, 8, 16\) for x of .*, from \(ops, x, stride\) -> array"),
        ("norm", NormRow(lambda lift, **fields: lambda x: x[1:]), r"returns shape \(0, 8, 8, 8\)"),
        ("stem", STEMS["cifar"]._replace(pool=lambda ops, x, antialias: x),
         r"returns shape \(1, 8, 8, 8\) for x .*: expected an array of shape \(1, 4, 4, 8\)"),
    ],
)  # fmt: skip
def test_error_in_a_row_has_field_and_shape(field, row, message):
    model = small(**{field: row}, depths=(1, 1))
    with pytest.raises(UserError, match=rf"^{field} test_fields:\S*<lambda> {message}"):
        variables_of(model, (1, 8, 8, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": wide, "output_stride": 8, "stem": "deep", "depths": (1, 1, 1),
          "widths": (8, 8, 8)}, "output_stride is 8, but block .*:wide, a function, has no dila"),
        ({"block": wide, "groups": 2}, "groups is 2, but block .*:wide has no grouped conv"),
        *(({"conv": conv, "ensemble": ensemble, "members": 2}, "ensemble .* share kernels, which")
          for ensemble in ("batch", "mimo") for conv in ("standardized", convolve)),
    ],
)  # fmt: skip
def test_impossible_combination_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        small(**fields)


@pytest.mark.parametrize("field", ["attention", "norm", "stem", "block", "shortcut", "head"])
def test_arrays_of_own_parts_have_no_names_in_torch(field):
    function = {"norm": extra_norm, "attention": mix}.get(field, FUNCTIONS.get(field))
    spec, variables = initialized(small(**{field: function}))
    part = rf"{field} test_fields:{function.__name__}"
    with pytest.raises(UserError, match=rf"has no name for \S+, of a network with {part}: "):
        to_torch(spec, variables, layout="timm")
    with pytest.raises(UserError, match=rf"has no name for \S+, of a network with {part}: "):
        from_torch(spec, {"conv1.weight": np.zeros((8, 3, 3, 3))})


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": jnp.sin, "pooling": largest},
        {"gate": half, "antialias": every_second, "conv": convolve},
        {"attention": lambda ops, x, channels: x / 2, "head": linear},
        {"norm": layer_norm, "stem": STEMS["tiered"]._replace(pool=None)},
        {"block": lambda ops, x, features, stride: ops.conv(x, features, 3, stride, name="conv1")},
    ],
)
def test_own_parts_without_own_arrays_are_converted(fields):
    """By the names that the shipped parts have in PyTorch, both ways."""
    spec, variables = initialized(small(**fields))
    state_dict = to_torch(spec, variables, layout="timm")
    shipped = {"layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.weight", "fc.bias"}
    assert shipped <= {*state_dict}
    jax.tree.map(np.testing.assert_array_equal, from_torch(spec, state_dict), variables)
    with pytest.raises(UserError, match="and PyTorch has no such part: expected one of"):
        torch_logits(spec, variables, IMAGES)


@pytest.mark.parametrize("fields", [
    {"attention": gate, "stem": patches}, {"norm": layer_norm}, {"pooling": "max"},
])  # fmt: skip
def test_predictor_runs_functions(fields):
    model = small(**fields, depths=(1,), widths=(8,))
    spec, variables = initialized(model)
    predict = make_predictor(spec, variables, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
    assert predict.backend == "jax"
    np.testing.assert_allclose(predict(IMAGES), apply(model, variables, IMAGES), atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
    images = ((pixels / 255 - (0.4, 0.5, 0.6)) / (0.2, 0.3, 0.2)).astype(np.float32)
    np.testing.assert_allclose(predict(pixels), apply(model, variables, images), atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_that_of_torch(activation):
    torch = pytest.importorskip("torch")
    reference = TorchResNet(small(activation=activation).spec, {})
    x = np.linspace(-7, 7, 101, dtype=np.float32)
    expected = reference.act(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[activation](x), expected, atol=2e-6)


def test_predictor_needs_one_array_of_logits():
    spec, variables = initialized(small(head=two_heads, depths=(1,), widths=(8,)))
    with pytest.raises(UserError, match=r"two_heads returns \(\(2, 5\), \(2, 1\)\): "):
        make_predictor(spec, variables)(IMAGES)


@pytest.mark.parametrize("field", [*FUNCTIONS, "conv"])
def test_spec_with_a_function_is_json(field):
    function = FUNCTIONS.get(field, jax.lax.conv_general_dilated)
    values = json.loads(json.dumps(small(**{field: function}).spec.to_json_dict()))
    assert values[field] == f"{function.__module__}:{function.__qualname__}"
    assert Spec.from_json_dict(values, import_functions=True) == small(**{field: function}).spec


def test_spec_with_rows_is_json():
    rows = (ConvRow(3, strided=True), ConvRow(5), ConvRow(3, expansion=1))
    stem = STEMS["tiered"]._replace(pool=None)
    scale = partial(jax.nn.leaky_relu, negative_slope=0.2)
    spec = small(block=[rows, "basic"], stem=stem, activation=scale, shortcut="D").spec
    values = json.loads(json.dumps(spec.to_json_dict()))
    assert values["block"][0][0] == {"ConvRow": {"kernel": 3, "strided": True}}
    found = Spec.from_json_dict(values, import_functions=True)
    assert found.override(activation="relu") == spec.override(activation="relu")
    assert found.to_json_dict() == spec.to_json_dict()
    assert found.activation.keywords == {"negative_slope": 0.2}


def test_missing_function_is_an_error_when_called():
    values = small(attention=lambda ops, x, channels: x).spec.to_json_dict()
    spec = Spec.from_json_dict(values, import_functions=True)
    assert spec.to_json_dict() == values
    with pytest.raises(UserError, match="has the function test_fields:.*, which cannot be impor"):
        variables_of(ResNet(spec), (1, 8, 8, 3))


def test_files_of_weights_import_and_call_no_functions(tmp_path, monkeypatch):
    (tmp_path / "imported.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    called = {"partial": {"function": "builtins:exit", "args": [1], "keywords": {}}}
    for part in ("imported:function", called):
        spec = small().spec.to_json_dict() | {"activation": part}
        config = PretrainedConfig(small().spec, 3, Preprocess(size=(8, 8))).to_json_dict()
        (tmp_path / "config.json").write_text(json.dumps({"resflax": config | {"spec": spec}}))
        found = read_config(tmp_path).spec
        with pytest.raises(UserError, match="not imported from a file of weights: pass a spec"):
            variables_of(ResNet(found), (1, 8, 8, 3))


def make_gate():
    return lambda ops, x, channels: gate(ops, x, channels)


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, []),
        ({"activation": "silu", "block": (ConvRow(3, strided=True),)}, []),
        ({"attention": gate, "stem": STEMS["cifar"]._replace(pool=every_second)}, [
            "the run is read: stem test_fields:every_second, attention test_fields:gate"
        ]),
        ({"attention": make_gate(), "pooling": largest, "block": (wide, "basic")}, [
            "saved by name, .*: pooling test_fields:largest, block test_fields:wide$",
            r"cannot be imported .*: attention test_fields:make_gate.<locals>.<lambda>: read it"
            r" with load_pretrained\(RUN, model=spec\), or define functions with def in a module",
        ]),
        ({"gate": learned_scale(0.1)}, ["cannot be imported .*gates:learned_scale.<locals>"]),
        ({"activation": nn.PReLU()}, [r"cannot be .*flax.linen.activation:PReLU\(\): "]),
        ({"activation": partial(jax.nn.leaky_relu, negative_slope=0.2)}, ["saved .*:leaky_relu$"]),
        ({"activation": partial(jnp.multiply, np.ones(1))}, [r"cannot be .*jax.numpy:ufunc\(\)"]),
        ({"attention": "added"}, ["cannot be .* attention 'added', a row that this progr"]),
    ],
)  # fmt: skip
def test_spec_says_how_its_functions_are_saved(fields, lines, monkeypatch):
    monkeypatch.setitem(ATTENTION, "added", gate)
    spec = small(**fields).spec
    found = spec.describe_saved()
    assert len(found) == len(lines)
    assert all(map(re.search, lines, found))
    assert json.dumps(spec.to_json_dict())


@pytest.mark.parametrize(
    "fields",
    [
        {"stem": lambda ops, x, features: patches(ops, x, features)},
        {"attention": make_gate(), "head": lambda ops, x, features: linear(ops, x, features)},
        {"gate": learned_scale(0.1)},
        {"attention": "added"},
        {"block": ("basic", "added")},
        {"activation": lambda x: jnp.sin(x), "block": (wide, lambda *args: wide(*args))},
    ],
)
def test_run_is_read_with_a_given_spec(fields, tmp_path, monkeypatch):
    """Though its functions cannot be imported, and its names are not in the tables."""
    with monkeypatch.context() as patch:
        patch.setitem(ATTENTION, "added", gate)
        patch.setitem(BLOCKS, "added", wide)
        spec = small(**fields).spec
        config = CONFIG._replace(spec=spec, labels=())
        run = write_workdir(tmp_path / "run", SavedStep(1, 0.5), config=config)
        expected = variables_at(1, config)
    own = {"attention": gate, "block": ("basic", wide)}
    given = spec.override(
        **{name: own[name] for name, value in fields.items() if "added" in np.ravel(value)}
    )
    loaded = load_pretrained(run, model=given)
    assert loaded.model.spec == given
    assert loaded.preprocess == CONFIG.preprocess
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected)
    jax.eval_shape(lambda v, x: loaded.model.apply(v, x, train=False), expected, IMAGES[..., :1])
    if "added" in fields.values():
        with pytest.raises(UserError, match=f"^{run}: unknown attention 'added': expected one of"):
            load_pretrained(run)


def train(tmp_path, epochs=1, **fields):
    config = default_config()
    config.update({"model": "cifar_resnet8", "epochs": epochs, "batch_size": 512})
    config.spec.update({"widths": (8, 8, 8), "stem_width": 8, "depths": (1, 1, 1), **fields})
    return fit(config, tmp_path / "run", silent=True)


@pytest.mark.slow
def test_run_with_a_function_is_resumed_and_read(tmp_path):
    train(tmp_path, attention=gate)
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["spec"]["attention"] == "test_fields:gate"
    with pytest.raises(UserError, match="spec.attention 'test_fields:gate', now None"):
        train(tmp_path)
    assert train(tmp_path, epochs=2, attention="test_fields:gate")["steps"] == 6
    loaded = load_pretrained(tmp_path / "run")
    assert loaded.model.spec.attention is gate
    main(["evaluate", str(tmp_path / "run"), f"--out={tmp_path / 'evaluation'}"])
    with pytest.raises(
        UserError, match="attention test_fields:gate, which the ONNX export does not have"
    ):
        to_onnx(PretrainedConfig(loaded.model.spec, 1, loaded.preprocess), loaded.variables)
