"""Weights files: exact round trips, and one-line errors for invalid files."""

import contextlib
import json
import os
import re
import sys

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers.weight_files import ARRAYS, assert_same, load_error
from hypothesis import HealthCheck, given, settings

from resflax import UserError
from resflax.weights import load_file, save_file

quick = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_round_trip_is_exact_for_every_dtype_and_shape(tmp_path):
    save_file(tmp_path / "a.safetensors", ARRAYS)
    assert_same(load_file(tmp_path / "a.safetensors"), ARRAYS)
    assert_same(load_file(str(tmp_path / "a.safetensors")), ARRAYS)
    assert_same(safetensors.numpy.load_file(tmp_path / "a.safetensors"), ARRAYS)


def test_round_trip_of_non_contiguous_arrays(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    arrays = {"t": x.T, "f": np.asfortranarray(x), "every second": x[:, ::2], "back": x[::-1]}
    save_file(tmp_path / "a.safetensors", arrays)
    assert_same(load_file(tmp_path / "a.safetensors"), arrays)


def test_folder_means_its_standard_weights_file(tmp_path):
    message = f"no weights in {tmp_path}: expected model.safetensors, pytorch_model.bin or"
    assert message in load_error(tmp_path)
    save_file(tmp_path / "model.safetensors", ARRAYS)
    assert_same(load_file(tmp_path), ARRAYS)


def sharded(folder, **changes):
    names = sorted(ARRAYS)
    weight_map = {}
    for i, part in enumerate((names[:3], names[3:]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file(folder / file, {name: ARRAYS[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map | changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def test_shards_load_as_one_set_of_arrays(tmp_path):
    index = sharded(tmp_path)
    assert_same(load_file(index), ARRAYS)
    assert_same(load_file(tmp_path), ARRAYS)


def test_index_of_missing_shards_or_arrays_is_rejected(tmp_path):
    message = load_error(sharded(tmp_path, other="model-00003-of-00003.safetensors"))
    assert "lists model-00003-of-00003.safetensors, which is not in the same folder" in message
    message = load_error(sharded(tmp_path, ghost="model-00001-of-00002.safetensors"))
    assert "lists arrays that its shards lack: ghost" in message
    (tmp_path / "in").mkdir()
    save_file(tmp_path / "x.safetensors", ARRAYS)
    for outside in ("../x.safetensors", str(tmp_path / "x.safetensors")):
        assert "which is not in the same folder" in load_error(
            sharded(tmp_path / "in", other=outside)
        )


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": 3}'])
def test_index_without_weight_map_is_rejected(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    assert "is not a weights index: expected JSON with a weight_map" in load_error(index)


def test_truncated_shard_is_named(tmp_path):
    index = sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is truncated: "):
        load_file(index)


def test_file_truncated_at_any_length_is_reported(tmp_path):
    save_file(tmp_path / "whole.safetensors", ARRAYS)
    data = (tmp_path / "whole.safetensors").read_bytes()
    part = tmp_path / "part.safetensors"
    for length in range(len(data)):
        part.write_bytes(data[:length])
        message = load_error(part)
        expected = "is truncated" if length >= 8 else "is not a (safetensors|weights) file"
        assert re.search(expected, message)
        assert f"{length} bytes" in message


@pytest.mark.slow
@quick
@given(data=st.data())
def test_corrupt_file_loads_or_raises_user_error(tmp_path, data):
    save_file(tmp_path / "whole.safetensors", ARRAYS)
    content = bytearray((tmp_path / "whole.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.safetensors").write_bytes(content)
    with contextlib.suppress(UserError):
        assert load_file(tmp_path / "x.safetensors")


@quick
@given(content=st.binary(max_size=200))
def test_random_bytes_are_rejected(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    message = load_error(tmp_path / "x.safetensors")
    assert re.search("not a (safetensors|weights) file|truncated|cannot read", message)


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b'{"a": 5}',
        b'{"a": {"data_offsets": ["x", "y"]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F99", "shape": [0], "data_offsets": [0, 0]}}',
        b'{"\xff": 1}',
    ],
)
def test_invalid_header_is_rejected(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "is not a safetensors file" in load_error(tmp_path / "x.safetensors")


def test_unsupported_dtype_is_named(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    assert "contains dtype 'F8_E4M3': expected one of F64, F32" in load_error(
        tmp_path / "x.safetensors"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_arrays_with_non_finite_values_are_named(tmp_path, dtype, value):
    bad = {f"bad{i}": np.array([1, value]).astype(dtype) for i in range(7)}
    save_file(tmp_path / "x.safetensors", {"good": np.ones(2, dtype), "bad0": bad["bad0"]})
    assert load_error(tmp_path / "x.safetensors").endswith(
        "NaN or infinity in bad0: expected finite values"
    )
    save_file(tmp_path / "x.safetensors", {**ARRAYS, **bad})
    assert "and 4 more: expected finite values" in load_error(tmp_path / "x.safetensors")


def test_missing_file_and_unknown_suffix_are_rejected(tmp_path):
    assert load_error(tmp_path / "no.safetensors").startswith("file not found: ")
    (tmp_path / "a.h5").write_bytes(b"x")
    assert "is not a weights file: expected the content of a .safetensors, .pth" in load_error(
        tmp_path / "a.h5"
    )


def test_save_errors_leave_no_file(tmp_path):
    with pytest.raises(
        UserError, match="cannot write .*a.npz: expected a name ending in .safetensors, .pth"
    ):
        save_file(tmp_path / "a.npz", ARRAYS)
    with pytest.raises(UserError, match="cannot write "):
        save_file(tmp_path / "no folder" / "a.safetensors", ARRAYS)
    with pytest.raises(UserError, match="cannot write "):
        save_file(tmp_path / "a.safetensors", {"a": np.array([object()])})
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"a{suffix}"
    arrays = {"a": np.ones(3)}
    save_file(path, arrays)

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="cannot write .*: no space left on device"):
        save_file(path, {"a": np.zeros(3)})
    assert_same(load_file(path), arrays)


@pytest.mark.parametrize("end", [".pth", ".pt", ".th", ".bin"])
def test_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch, end):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / f"a{end}").write_bytes(b"\x80\2x")
    assert 'needs PyTorch: pip install "resflax[torch]", or use a .safetensors' in load_error(
        tmp_path / f"a{end}"
    )
    with pytest.raises(
        UserError,
        match=r'cannot write .*: writing it needs PyTorch: pip install "resflax\[torch\]"',
    ):
        save_file(tmp_path / f"b{end}", ARRAYS)
    assert not (tmp_path / f"b{end}").exists()
