"""Checkpoints as training scripts save them: wrapped, with prefixes, beside other objects."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import random
import re
import types
import uuid

import ml_dtypes
import numpy as np
import pytest
from helpers.networks import randomized
from helpers.weight_files import assert_same, load_error

from resflax import UserError
from resflax.weights import from_torch, load_file, read_weights, save_file, to_torch
from resflax.weights.bridge import flatten
from resflax.weights.prefixes import strip_prefixes
from resflax.weights.shapes import variable_shapes
from resflax.weights.unwrap import find_state_dict
from resflax.zoo import get_spec

torch = pytest.importorskip("torch")

NAME = "cifar_resnet8"
SPEC = get_spec(NAME)
STATE = to_torch(SPEC, randomized(variable_shapes(SPEC)))
OTHER = {key: array + 1 for key, array in STATE.items()}
VARIABLES = from_torch(SPEC, STATE)
TRANSFORMERS = to_torch(SPEC, VARIABLES, layout="huggingface")
TIMM = to_torch(SPEC, VARIABLES, layout="timm")
HEADLESS = {key: array for key, array in TRANSFORMERS.items() if "classifier" not in key}


def prefixed(prefix, state=STATE):
    return {prefix + key: array for key, array in state.items()}


def tensors(content):
    """Returns a checkpoint with torch tensors in place of its arrays."""
    if isinstance(content, dict):
        return type(content)({key: tensors(value) for key, value in content.items()})
    if isinstance(content, list | tuple):
        return type(content)(map(tensors, content))
    return torch.from_numpy(content.copy()) if isinstance(content, np.ndarray) else content


OPTIMIZER = {
    "state": {0: {"momentum_buffer": np.ones((4, 3, 3, 3)), "step": np.ones(())}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
# The checkpoint, and the keys that lead to what is taken from it.
WRAPPERS = {
    "state dict": (STATE, ""),
    "beside plain values": ({**STATE, "epoch": 3}, ""),
    "model": ({"model": STATE}, "['model']"),
    "model_state_dict": (
        {"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER, "loss": 0.5},
        "['model_state_dict']",
    ),
    "net": ({"net": STATE, "optimizer": OPTIMIZER, "acc": 0.9}, "['net']"),
    "nested": ({"model": {"state_dict": STATE}}, "['model']['state_dict']"),
    "nested three times": (
        {"checkpoint": {"model": {"weights": STATE}, "optimizer": OPTIMIZER}},
        "['checkpoint']['model']['weights']",
    ),
    "tuple": ((STATE, 3), "[0]"),
    "list of one": ({"models": [STATE]}, "['models'][0]"),
    "Lightning": (
        {
            "epoch": 1,
            "global_step": 9,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": prefixed("model."),
            "callbacks": {"ModelCheckpoint": {"best_model_score": np.ones(())}},
            "optimizer_states": [OPTIMIZER],
            "lr_schedulers": [{"last_epoch": 1}],
        },
        "['state_dict']",
    ),
    "timm": (
        {"state_dict": OTHER, "state_dict_ema": STATE, "optimizer": OPTIMIZER, "epoch": 3},
        "['state_dict_ema']",
    ),
    "torchvision": (
        {"model": OTHER, "model_ema": {"n_averaged": np.array(7), **prefixed("module.")}},
        "['model_ema']",
    ),
    "nested EMA": ({"model": OTHER, "ema": {"module": STATE}}, "['ema']['module']"),
    "SWA": ({"state_dict": OTHER, "swa_model": STATE}, "['swa_model']"),
    "EMA of parameters alone": (
        {"model": STATE, "ema": {k: a for k, a in OTHER.items() if "running" not in k}},
        "['model']",
    ),
    "one network twice": ({"model": STATE, "state_dict": dict(STATE)}, "['model']"),
    "loss with a weight": ({"model": STATE, "criterion": {"weight": np.ones(10)}}, "['model']"),
    "other network": (
        {"model": STATE, "critic": {"conv.weight": np.ones((1, 1, 3, 3))}},
        "['model']",
    ),
    "name that contains ema": ({"schema": {"a": 1}, "model": STATE}, "['model']"),
}
# The prefixed state dict, and the prefix that is removed.
PREFIXES = {
    **{
        f"prefix {prefix}": (prefixed(prefix), prefix)
        for prefix in (
            "module.",
            "_orig_mod.",
            "_orig_mod.module.",
            "module._orig_mod.",
            "module.module.",
            "model.",
            "encoder.",
            "backbone.",
            "net.",
            "student.",
            "model._orig_mod.",
            "_fsdp_wrapped_module.",
            "model.backbone.body.",
            "0.",
        )
    },
    "none": (STATE, ""),
    "timm": (prefixed("model.", TIMM), "model."),
    "Transformers": (TRANSFORMERS, ""),
    "Transformers in a module": (prefixed("model.", TRANSFORMERS), "model."),
    "compiled stage": (
        {key.replace("layer1.", "layer1._orig_mod."): a for key, a in STATE.items()},
        "",
    ),
}
# Objects that torch's and timm's training scripts save beside the weights.
PLAIN = {
    "namespace": argparse.Namespace(lr=0.1, output=pathlib.Path("a"), betas=(0.9, 0.99)),
    "path": pathlib.PurePosixPath("a"),
    "Windows path": pathlib.PureWindowsPath("a"),
    "array": np.asfortranarray(np.ones((2, 3))),
    "object array": np.array(["a", 1, None], dtype=object),
    "dtypes": [np.dtype("float32"), np.dtype("<U3"), torch.float16],
    "scalars": [np.float64(1), np.float32(1), np.int64(1), np.bool_(True), np.uint8(1)],
    "defaultdict": collections.defaultdict(list, {"loss": [0.1, np.float32(0.2)]}),
    "nested defaultdict": collections.defaultdict(dict, a=collections.defaultdict(int, b=1)),
    "OrderedDict": collections.OrderedDict(a=1),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "dates": [
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 2),
        datetime.timedelta(1),
    ],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 2**100, 1j],
    "sets": [{1, 2}, frozenset([1])],
    "bytes": [b"a", bytearray(b"a")],
    "ranges": [range(3), slice(1, 2)],
    "size and device": [torch.Size([1, 2]), torch.device("cpu"), torch.__version__],
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "uuid": uuid.UUID(int=1),
    "random states": [random.getstate(), np.random.default_rng(0), torch.get_rng_state()],
}


class Color(enum.Enum):
    RED = 1

    def __reduce_ex__(self, protocol):
        return Color, (self.value,)  # some versions of Python 3.11 call getattr instead


class Settings:
    def __init__(self):
        self.path = pathlib.Path("a")


CODE = {
    "enum": ({"model": STATE, "color": Color.RED}, "test_weights_checkpoints.Color"),
    "object": ({"model": STATE, "settings": Settings()}, "test_weights_checkpoints.Settings"),
    "function": ({"model": STATE, "f": tensors}, "test_weights_checkpoints.tensors"),
    "module": (torch.nn.Conv2d(1, 1, 1), "torch.nn.modules.conv.Conv2d"),
    "module in a dict": ({"model": torch.nn.ReLU(), "epoch": 1}, "torch.nn.modules.activation."),
}


@pytest.mark.parametrize("case", WRAPPERS)
def test_wrapped_state_dict_is_found(tmp_path, case):
    checkpoint, keys = WRAPPERS[case]
    messages = []
    path = tmp_path / "model_best.pth.tar"
    torch.save(tensors(checkpoint), path)
    arrays = load_file(path, report=messages.append)
    assert_same(strip_prefixes(arrays).arrays, STATE)
    assert any(f"using {keys} of" in message for message in messages) == bool(keys)
    if isinstance(checkpoint, dict):
        from_torch(NAME, checkpoint, report=messages.append)


def test_state_dict_of_averaged_weights_is_said():
    messages = []
    find_state_dict({"model": OTHER, "model_ema": STATE}, "a.pth", messages.append)
    assert messages == [
        "a.pth: using ['model_ema'] of the checkpoint's 'model', 'model_ema'; it also has ['model']"
    ]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            {"student": STATE, "teacher": OTHER},
            "has 2 state dicts, ['student'], ['teacher']: expec",
        ),
        ({"a": {"model": STATE}, "b": [OTHER]}, "has 2 state dicts, ['a']['model'], ['b'][0]: exp"),
        ({"optimizer": OPTIMIZER, "epoch": 1}, "these entries are neither: optimizer, epoch"),
        ({"epoch": 1}, "these entries are neither: epoch"),
    ],
)
def test_checkpoint_without_one_state_dict_is_rejected(tmp_path, checkpoint, message):
    torch.save(tensors(checkpoint), tmp_path / "last.ckpt")
    assert message in load_error(tmp_path / "last.ckpt")
    with pytest.raises(UserError) as e:
        from_torch(NAME, checkpoint)
    assert message in str(e.value)


@pytest.mark.parametrize("case", PREFIXES)
def test_common_prefix_is_removed_and_said(tmp_path, case):
    state, prefix = PREFIXES[case]
    messages = []
    variables = from_torch(NAME, state, report=messages.append)
    assert_same(flatten(variables), flatten(VARIABLES))
    said = f"using the arrays of the state dict without the prefix {prefix!r} of their names"
    assert messages == ([said] if prefix else [])
    save_file(tmp_path / "w.safetensors", state)
    weights = read_weights(tmp_path / "w.safetensors", NAME)
    assert_same(flatten(weights.variables), flatten(VARIABLES))
    assert (f"; without the prefix {prefix!r} of their names" in weights.source) == bool(prefix)


@pytest.mark.parametrize("prefix", ["", "resnet.", "model.", "model.resnet."])
def test_headless_transformers_names_are_kept(prefix):
    state = {prefix + key.removeprefix("resnet."): array for key, array in HEADLESS.items()}
    variables = from_torch(NAME, state, num_classes=0)
    expected = {**VARIABLES["params"]}
    del expected["head"]
    assert_same(flatten({"params": variables["params"]}), flatten({"params": expected}))


# The state dict, the prefix of the network in it, and what is said about the other arrays.
BESIDE = {
    "loss": (
        {**prefixed("model."), "criterion.weight": np.ones(10)},
        "model.",
        "1 other array (criterion.weight)",
    ),
    "loss in a module": (
        {**prefixed("net.model."), "net.loss.weight": np.ones(10)},
        "net.model.",
        "1 other array (net.loss.weight)",
    ),
    "projector": (
        {**prefixed("module.backbone."), "module.projector.0.weight": np.ones((3, 3))},
        "module.backbone.",
        "1 other array (module.projector.0.weight)",
    ),
    "averaged": (
        {**prefixed("model.", OTHER), **prefixed("model_ema.module."), "step": np.ones(())},
        "model_ema.module.",
        f"{len(STATE) + 1} other arrays (model.",
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_network_with_a_head_beside_other_arrays_is_read(tmp_path, case):
    state, prefix, left_out = BESIDE[case]
    messages = []
    variables = from_torch(NAME, state, report=messages.append)
    assert_same(flatten(variables), flatten(VARIABLES))
    save_file(tmp_path / "w.safetensors", state)
    weights = read_weights(tmp_path / "w.safetensors", NAME)
    assert_same(flatten(weights.variables), flatten(VARIABLES))
    for text in (*messages, weights.source):
        assert f"without the prefix {prefix!r} of their names and without {left_out}" in text


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {
                **prefixed("backbone.", {k: a for k, a in STATE.items() if "linear" not in k}),
                "head.weight": STATE["linear.weight"],
                "head.bias": STATE["linear.bias"],
            },
            "without a head begin with 'backbone.', and those of 2 other arrays do not (",
        ),
        (
            {**prefixed("encoder_q."), **prefixed("encoder_k."), "queue": np.ones((3, 3))},
            "the names of 2 networks begin with 'encoder_q.' and with 'encoder_k.': expected the",
        ),
    ],
)
def test_network_beside_another_or_its_head_is_named(state, message):
    with pytest.raises(UserError, match=re.escape(message)):
        from_torch(NAME, state)


@pytest.mark.parametrize("case", PLAIN)
@pytest.mark.parametrize("is_zip", [True, False])
def test_plain_objects_beside_the_weights_are_ignored(tmp_path, case, is_zip):
    path = tmp_path / "checkpoint"
    content = {"model": tensors(STATE), "args": PLAIN[case]}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert_same(load_file(path), STATE)


def test_arrays_of_numpy_in_a_torch_file_are_read(tmp_path):
    torch.save({"model": STATE}, tmp_path / "a.pth")
    assert_same(load_file(tmp_path / "a.pth"), STATE)


@pytest.mark.parametrize("case", CODE)
@pytest.mark.parametrize("is_zip", [True, False])
def test_class_that_is_not_loaded_is_named(tmp_path, case, is_zip):
    content, name = CODE[case]
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    message = load_error(tmp_path / "a.pth")
    assert f"contains {name}" in message
    assert "torch.save(net.state_dict(), 'weights.pth')" in message
    assert "\x1b" not in message


def test_other_pickle_protocol_is_named(tmp_path):
    torch.save(tensors(STATE), tmp_path / "a.pth", pickle_protocol=4)
    assert "has another pickle protocol than torch's default" in load_error(tmp_path / "a.pth")


TENSORS = {
    "bfloat16": (lambda x: x.bfloat16(), lambda x: x.astype(ml_dtypes.bfloat16)),
    "half": (lambda x: x.half(), lambda x: x.astype(np.float16)),
    "parameter": (lambda x: torch.nn.Parameter(x), lambda x: x),
    "requires_grad": (lambda x: x.requires_grad_(), lambda x: x),
    "result of a computation": (lambda x: x.requires_grad_() * 1, lambda x: x),
    "not contiguous": (lambda x: torch.stack([x, x], -1)[..., 0], lambda x: x),
    "negative view": (lambda x: torch.complex(x, -x).conj().imag, lambda x: x),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_any_kind_are_converted(tmp_path, case):
    convert, expected = TENSORS[case]
    state = {key: convert(torch.from_numpy(array.copy())) for key, array in STATE.items()}
    variables = flatten(from_torch(NAME, state))
    assert_same(variables, {k: expected(a) for k, a in flatten(VARIABLES).items()})
    for suffix in (".pth", ".safetensors"):
        save_file(tmp_path / f"a{suffix}", state)
        assert_same(load_file(tmp_path / f"a{suffix}"), {k: expected(a) for k, a in STATE.items()})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(16, device="meta"), "is a meta tensor, which has no values"),
        (torch.eye(16).to_sparse(), "layout torch.sparse_coo: expected a dense tensor"),
        (torch.ones(16, dtype=torch.complex64), "is a tensor of dtype torch.complex64"),
    ],
)
def test_tensor_without_real_values_is_named(tensor, message):
    with pytest.raises(UserError, match="bn1.bias .*" + message):
        from_torch(NAME, {**STATE, "bn1.bias": tensor})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.nn.Conv2d(1, 1, 1), "a Conv2d was given: pass its state_dict"),
        ("w.pth", "the path 'w.pth' was given: expected a state dict"),
        (pathlib.Path("w.pth"), "the path 'w.pth' was given: expected a state dict"),
        ({}, "contains an empty dict"),
        ({0: np.ones(1)}, "has the key 0: expected names of arrays"),
    ],
)
def test_other_argument_than_a_state_dict_is_named(content, message):
    with pytest.raises(UserError, match=message):
        from_torch(NAME, content)
