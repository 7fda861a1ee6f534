"""Files of torch's: the safe loader alone reads them."""

import argparse
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from test_weights_files import ARRAYS, assert_same, refused

from resflax import UserError
from resflax.weights import load, save

torch = pytest.importorskip("torch")

FORMATS = {"zip": True, "legacy": False}
every_format = pytest.mark.parametrize("form", FORMATS)
STATE = OrderedDict(
    {
        "conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "half": torch.tensor([[1.5], [-2]], dtype=torch.float16),
        "brain": torch.tensor([1.5, -3e38], dtype=torch.bfloat16),
        "count": torch.tensor(2**40),
        "none": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
)
EXPECTED = {
    **{name: ARRAYS[name] for name in ("conv.weight", "half", "brain", "count", "none")},
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "trained": np.ones(2, np.float32),
}


def write(path, held, form):
    torch.save(held, path, _use_new_zipfile_serialization=FORMATS[form])
    return path


class Code:
    """What unpickling would turn into a call: `os.mkdir(path)`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@every_format
def test_a_state_dict_comes_back_bit_for_bit(tmp_path, form):
    assert_same(load(write(tmp_path / "a.pth", STATE, form)), EXPECTED)
    write(tmp_path / "pytorch_model.bin", STATE, form)
    assert_same(load(tmp_path), EXPECTED)


def test_what_is_saved_torch_loads(tmp_path):
    arrays = {name: array for name, array in ARRAYS.items() if name != "brain"}
    for end in (".pth", ".bin"):
        save(tmp_path / f"a{end}", arrays)
        found = torch.load(tmp_path / f"a{end}", weights_only=True)
        assert_same({name: tensor.numpy() for name, tensor in found.items()}, arrays)
        assert_same(load(tmp_path / f"a{end}"), arrays)
    with pytest.raises(UserError, match="cannot write .*no folder"):
        save(tmp_path / "no folder" / "a.pth", arrays)


@every_format
@pytest.mark.parametrize(
    ("held", "taken", "of"),
    [
        ({"state_dict": 1, "epoch": 3}, "state_dict", "'state_dict', 'epoch'"),
        ({"model": 1}, "model", "'model'"),
        ({"model": 0, "state_dict_ema": 1}, "state_dict_ema", "'model', 'state_dict_ema'"),
        ({"state_dict": 0, "model_ema": 1}, "model_ema", "'state_dict', 'model_ema'"),
    ],
)
def test_a_wrapped_state_dict_is_unwrapped_and_told(tmp_path, form, held, taken, of):
    other = {"other": torch.ones(1)}
    held = {k: (other, STATE)[v] if v in (0, 1) else v for k, v in held.items()}
    told = []
    path = write(tmp_path / "a.pth", held, form)
    assert_same(load(path, tell=told.append), EXPECTED)
    assert told == [f"{path}: took {taken!r} of {of}"]


def test_it_is_told_on_stderr_and_a_bare_state_dict_says_nothing(tmp_path, capsys):
    load(write(tmp_path / "a.pth", {"model": STATE}, "zip"))
    assert capsys.readouterr() == ("", f"{tmp_path / 'a.pth'}: took 'model' of 'model'\n")
    load(write(tmp_path / "a.pth", STATE, "zip"))
    assert capsys.readouterr() == ("", "")


@every_format
@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([1, 2], "holds a list: expected names and arrays"),
        (torch.ones(2), "holds a Tensor: expected names and arrays"),
        ({}, "holds a dict: expected names and arrays"),
        ({"a": torch.ones(2), "epoch": 5}, "is no state dict: epoch are no arrays"),
        ({"net": {"a": torch.ones(2)}}, "is no state dict: net are no arrays"),
        ({"a": torch.tensor([1, float("nan")])}, "not finite, in a: expected numbers"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, form, held, message):
    assert message in refused(write(tmp_path / "a.pth", held, form))


@every_format
@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
def test_pickled_code_is_refused_and_never_run(tmp_path, form, place):
    code = Code(tmp_path / "was run")
    held = {
        "alone": code,
        "beside": {"state_dict": STATE, "x": code},
        "inside": {**STATE, "": code},
    }
    path = write(tmp_path / "a.pth", held[place], form)
    assert "pickled code, which is never run" in refused(path)
    assert not code.path.exists()
    torch.load(path, weights_only=False)  # where it is trusted, the code does run
    assert code.path.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_and_never_run(tmp_path, protocol):
    for held in (Code(tmp_path / "was run"), argparse.Namespace(a=1)):
        (tmp_path / "a.pth").write_bytes(pickle.dumps(held, protocol))
        refused(tmp_path / "a.pth")
    assert not (tmp_path / "was run").exists()


@every_format
def test_a_file_cut_short_anywhere_is_refused(tmp_path, form):
    data = write(tmp_path / "whole.pth", STATE, form).read_bytes()
    part = tmp_path / "part.pth"
    step = max(1, len(data) // 400)
    for length in range(0, len(data), step):
        part.write_bytes(data[:length])
        message = refused(part)
        assert "truncated or no checkpoint" in message or "no checkpoint of arrays" in message


@pytest.mark.parametrize("data", [b"", b"\0", b"<!DOCTYPE html>\n", b"PK\3\4" + bytes(99)])
def test_noise_is_refused(tmp_path, data):
    (tmp_path / "a.pth").write_bytes(data)
    assert "no checkpoint" in refused(tmp_path / "a.pth")
