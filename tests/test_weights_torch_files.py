"""Torch weights files, which only torch's safe loader reads."""

import argparse
import os
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
from helpers.weight_files import ARRAYS, assert_same, load_error

from resflax import UserError
from resflax.weights import load_file, save_file

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


def write(path, content, form):
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[form])
    return path


class Code:
    """Object whose unpickling calls `os.mkdir(path)`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@every_format
def test_state_dict_loads_exactly(tmp_path, form):
    assert_same(load_file(write(tmp_path / "a.pth", STATE, form)), EXPECTED)
    write(tmp_path / "pytorch_model.bin", STATE, form)
    assert_same(load_file(tmp_path), EXPECTED)


def test_saved_file_loads_in_torch(tmp_path):
    arrays = {name: array for name, array in ARRAYS.items() if name != "brain"}
    for end in (".pth", ".bin"):
        save_file(tmp_path / f"a{end}", arrays)
        loaded = torch.load(tmp_path / f"a{end}", weights_only=True)
        assert_same({name: tensor.numpy() for name, tensor in loaded.items()}, arrays)
        assert_same(load_file(tmp_path / f"a{end}"), arrays)
    with pytest.raises(UserError, match="cannot write .*no folder"):
        save_file(tmp_path / "no folder" / "a.pth", arrays)


@every_format
@pytest.mark.parametrize(
    ("content", "key", "keys", "more"),
    [
        ({"state_dict": 1, "epoch": 3}, "state_dict", "'state_dict', 'epoch'", ""),
        ({"model": 1}, "model", "'model'", ""),
        (
            {"model": 0, "state_dict_ema": 1},
            "state_dict_ema",
            "'model', 'state_dict_ema'",
            "; it also has ['model']",
        ),
        (
            {"state_dict": 0, "model_ema": 1},
            "model_ema",
            "'state_dict', 'model_ema'",
            "; it also has ['state_dict']",
        ),
    ],
)
def test_training_checkpoint_is_unwrapped_and_reported(tmp_path, form, content, key, keys, more):
    other = {"other.weight": torch.ones(1, 1, 1, 1)}
    content = {k: (other, STATE)[v] if v in (0, 1) else v for k, v in content.items()}
    messages = []
    path = write(tmp_path / "a.pth", content, form)
    assert_same(load_file(path, report=messages.append), EXPECTED)
    assert messages == [f"{path}: using [{key!r}] of the checkpoint's {keys}{more}"]


def test_report_goes_to_stderr_for_training_checkpoints_only(tmp_path, capsys):
    load_file(write(tmp_path / "a.pth", {"model": STATE}, "zip"))
    assert capsys.readouterr() == (
        "",
        f"{tmp_path / 'a.pth'}: using ['model'] of the checkpoint's 'model'\n",
    )
    load_file(write(tmp_path / "a.pth", STATE, "zip"))
    assert capsys.readouterr() == ("", "")


@every_format
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains a list: expected a dict of arrays"),
        (torch.ones(2), "contains a Tensor: expected a dict of arrays"),
        ({}, "contains an empty dict: expected a dict of arrays"),
        (
            {"a": torch.ones(2), "epoch": 5},
            "is not a state dict: expected arrays only, or one state dict among other values, but"
            " these entries are neither: epoch",
        ),
        (
            {"a": torch.tensor([1, float("nan")])},
            "contains NaN or infinity in a: expected finite values",
        ),
    ],
)
def test_other_content_is_rejected(tmp_path, form, content, message):
    assert message in load_error(write(tmp_path / "a.pth", content, form))


@every_format
@pytest.mark.parametrize("place", ["root", "sibling", "state dict"])
def test_pickled_code_is_rejected_and_not_run(tmp_path, form, place):
    code = Code(tmp_path / "was run")
    contents = {
        "root": code,
        "sibling": {"state_dict": STATE, "x": code},
        "state dict": {**STATE, "": code},
    }
    path = write(tmp_path / "a.pth", contents[place], form)
    assert "pickled code, which is never run" in load_error(path)
    assert not code.path.exists()
    torch.load(path, weights_only=False)  # the unsafe loader runs the code
    assert code.path.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickle_is_rejected_and_not_run(tmp_path, protocol):
    for content in (Code(tmp_path / "was run"), argparse.Namespace(a=1)):
        (tmp_path / "a.pth").write_bytes(pickle.dumps(content, protocol))
        load_error(tmp_path / "a.pth")
    assert not (tmp_path / "was run").exists()


@pytest.mark.slow
@every_format
def test_file_truncated_at_any_length_is_rejected(tmp_path, form):
    data = write(tmp_path / "whole.pth", STATE, form).read_bytes()
    part = tmp_path / "part.pth"
    step = max(1, len(data) // 400)
    for length in range(0, len(data), step):
        part.write_bytes(data[:length])
        message = load_error(part)
        assert re.search(
            "truncated or not a checkpoint|not a checkpoint of plain|not a weights", message
        )


@pytest.mark.parametrize("data", [b"", b"\0", b"<!DOCTYPE html>\n", b"PK\3\4" + bytes(99)])
def test_file_of_another_format_is_rejected(tmp_path, data):
    (tmp_path / "a.pth").write_bytes(data)
    assert re.search("not a (checkpoint|weights file)", load_error(tmp_path / "a.pth"))
