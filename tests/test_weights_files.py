"""Files of weights: read as they were written, or refused in one line."""

import contextlib
import json
import sys

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings

from resflax import UserError
from resflax.weights import load, save

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "half": np.array([[1.5], [-2]], np.float16),
    "brain": np.array([1.5, -3e38], ml_dtypes.bfloat16),
    "double": np.array([np.pi]),
    "count": np.array(2**40, np.int64),
    "none": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "bytes": np.array([0, 255], np.uint8),
}
quick = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def refused(path):
    """The one line that says why a file cannot be loaded."""
    with pytest.raises(UserError) as e:
        load(path)
    message = str(e.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path):
    save(tmp_path / "a.safetensors", ARRAYS)
    assert_same(load(tmp_path / "a.safetensors"), ARRAYS)
    assert_same(load(str(tmp_path / "a.safetensors")), ARRAYS)
    assert_same(safetensors.numpy.load_file(tmp_path / "a.safetensors"), ARRAYS)


def test_arrays_that_lie_otherwise_in_memory_are_written_by_their_elements(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    arrays = {"t": x.T, "f": np.asfortranarray(x), "every second": x[:, ::2], "back": x[::-1]}
    save(tmp_path / "a.safetensors", arrays)
    assert_same(load(tmp_path / "a.safetensors"), arrays)


def test_a_folder_is_the_file_under_the_usual_name(tmp_path):
    assert "holds no weights: expected model.safetensors, pytorch_model.bin or" in refused(tmp_path)
    save(tmp_path / "model.safetensors", ARRAYS)
    assert_same(load(tmp_path), ARRAYS)


def sharded(folder, **changes):
    names = sorted(ARRAYS)
    where = {}
    for i, part in enumerate((names[:3], names[3:]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save(folder / file, {name: ARRAYS[name] for name in part})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where | changes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def test_shards_are_one_set_of_arrays(tmp_path):
    index = sharded(tmp_path)
    assert_same(load(index), ARRAYS)
    assert_same(load(tmp_path), ARRAYS)


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path):
    message = refused(sharded(tmp_path, other="model-00003-of-00003.safetensors"))
    assert "names model-00003-of-00003.safetensors, which is not beside it" in message
    message = refused(sharded(tmp_path, ghost="model-00001-of-00002.safetensors"))
    assert "names arrays that its files lack: ghost" in message
    (tmp_path / "in").mkdir()
    save(tmp_path / "x.safetensors", ARRAYS)
    for outside in ("../x.safetensors", str(tmp_path / "x.safetensors")):
        assert "which is not beside it" in refused(sharded(tmp_path / "in", other=outside))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    assert "is no index of weights: expected a weight_map in JSON" in refused(index)


def test_a_shard_that_was_cut_is_named(tmp_path):
    index = sharded(tmp_path)
    part = tmp_path / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is truncated: "):
        load(index)


def test_a_file_cut_short_anywhere_is_called_truncated(tmp_path):
    save(tmp_path / "whole.safetensors", ARRAYS)
    data = (tmp_path / "whole.safetensors").read_bytes()
    part = tmp_path / "part.safetensors"
    for length in range(len(data)):
        part.write_bytes(data[:length])
        message = refused(part)
        expected = "is truncated" if length >= 8 else "is no safetensors file"
        assert expected in message
        assert f"{length} bytes" in message


@quick
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_but_never_another_error(tmp_path, data):
    save(tmp_path / "whole.safetensors", ARRAYS)
    content = bytearray((tmp_path / "whole.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.safetensors").write_bytes(content)
    with contextlib.suppress(UserError):
        assert load(tmp_path / "x.safetensors")


@quick
@given(content=st.binary(max_size=200))
def test_noise_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    message = refused(tmp_path / "x.safetensors")
    assert "no safetensors file" in message or "truncated" in message


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
def test_a_header_of_another_kind_is_refused(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "is no safetensors file" in refused(tmp_path / "x.safetensors")


def test_a_dtype_that_numpy_lacks_is_named(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    assert "holds arrays of dtype 'F8_E4M3': expected F64, F32" in refused(
        tmp_path / "x.safetensors"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(tmp_path, dtype, value):
    bad = {f"bad{i}": np.array([1, value]).astype(dtype) for i in range(7)}
    save(tmp_path / "x.safetensors", {"good": np.ones(2, dtype), "bad0": bad["bad0"]})
    assert refused(tmp_path / "x.safetensors").endswith("not finite, in bad0: expected numbers")
    save(tmp_path / "x.safetensors", {**ARRAYS, **bad})
    assert "and 2 more: expected numbers" in refused(tmp_path / "x.safetensors")


def test_what_is_not_there_or_of_another_kind_is_refused(tmp_path):
    assert refused(tmp_path / "no.safetensors").startswith("there is no file ")
    (tmp_path / "a.h5").write_bytes(b"x")
    assert "is no file of weights: expected .safetensors, .pth, .pt" in refused(tmp_path / "a.h5")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match="a.npz: expected a name that ends in .safetensors, .pth"):
        save(tmp_path / "a.npz", ARRAYS)
    with pytest.raises(UserError, match="cannot write "):
        save(tmp_path / "no folder" / "a.safetensors", ARRAYS)
    with pytest.raises(UserError, match="cannot write "):
        save(tmp_path / "a.safetensors", {"a": np.array([object()])})
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("end", [".pth", ".pt", ".th", ".bin"])
def test_without_torch_its_files_say_what_to_install(tmp_path, monkeypatch, end):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / f"a{end}").write_bytes(b"x")
    assert "needs PyTorch: pip install torch, or give a .safetensors" in refused(
        tmp_path / f"a{end}"
    )
    with pytest.raises(UserError, match="writing .* needs PyTorch: pip install torch"):
        save(tmp_path / f"b{end}", ARRAYS)
    assert not (tmp_path / f"b{end}").exists()
