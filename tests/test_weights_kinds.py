"""Kinds of weights files, which are found by content, whatever the suffix."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
from helpers.weight_files import ARRAYS, assert_same, load_error
from safetensors.numpy import save

from resflax.weights import load_file

torch = pytest.importorskip("torch")

NAMES = ("model_best.pth.tar", "last.ckpt", "weights", "a.pth", "a.bin", "a.safetensors", "a.txt")


def torch_bytes(*, is_zip):
    buffer = io.BytesIO()
    tensors = {k: torch.from_numpy(a) for k, a in ARRAYS.items() if k != "brain"}
    torch.save(tensors, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def archive(kind):
    """Returns the bytes of an archive with one file in it."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("weights.pth", b"x")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return buffer.getvalue()


def numpy_bytes(save_arrays, *arrays):
    buffer = io.BytesIO()
    save_arrays(buffer, *arrays)
    return buffer.getvalue()


def script_bytes():
    buffer = io.BytesIO()
    module = torch.jit.trace(torch.nn.ReLU(), torch.ones(1))
    torch.jit.save(module, buffer)
    return buffer.getvalue()


READABLE = {
    "safetensors": lambda: save({k: a for k, a in ARRAYS.items() if k != "brain"}),
    "torch": lambda: torch_bytes(is_zip=True),
    "legacy torch": lambda: torch_bytes(is_zip=False),
}
OTHERS = {
    "gzip": (lambda: gzip.compress(b"x"), "a gzip archive: unpack it"),
    "tar": (lambda: archive("tar"), "a tar archive: unpack it"),
    "zip": (lambda: archive("zip"), "a zip archive: unpack it"),
    "npz": (lambda: numpy_bytes(np.savez, np.ones(2)), "an .npz file of NumPy"),
    "npy": (lambda: numpy_bytes(np.save, np.ones(2)), "an array of NumPy"),
    "html": (lambda: b"\n<!DOCTYPE html><html>", "an HTML page: the download was that of a web"),
    "html with a mark": (lambda: b"\xef\xbb\xbf<!DOCTYPE html>", "an HTML page: the download was"),
    "answer": (lambda: b'{"error": "not found"}\n', 'text that begins with \'{"error": "not found'),
    "words": (lambda: b"Not Found", "text that begins with 'Not Found'"),
    "empty": (lambda: b"", "empty (0 bytes)"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n", "an image"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", READABLE)
def test_kind_is_found_by_content(tmp_path, name, kind):
    (tmp_path / name).write_bytes(READABLE[kind]())
    expected = {key: array for key, array in ARRAYS.items() if key != "brain"}
    assert_same(load_file(tmp_path / name), expected)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "weights", "model_best.pth.tar"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_file_is_named(tmp_path, name, kind):
    content, message = OTHERS[kind]
    (tmp_path / name).write_bytes(content())
    assert f"is not a weights file: it is {message}" in load_error(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_archive_is_named(tmp_path):
    (tmp_path / "a.pt").write_bytes(script_bytes())
    assert "it is a TorchScript archive: load it with torch.jit" in load_error(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["weights", "last.ckpt", "a.tar", "a.pth", "a.bin"])
@pytest.mark.parametrize("content", [b"\0", b"PK", b"%\xe2\xe3", b"GGUF\3\0", bytes(2000)])
def test_unknown_content_is_rejected(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "is not a weights file: expected the content of a" in load_error(tmp_path / name)


@pytest.mark.parametrize("name", ["weights", "a.pth", "a.safetensors"])
@pytest.mark.parametrize("removed", [1, 30, 500])
def test_truncated_archive_of_torch_is_named(tmp_path, name, removed):
    (tmp_path / name).write_bytes(torch_bytes(is_zip=True)[:-removed])
    message = load_error(tmp_path / name)
    assert "is truncated or not a checkpoint" in message
    assert message.endswith("has no table of contents at its end")


def test_home_of_the_user_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(READABLE["safetensors"]())
    assert "count" in load_file("~/a.safetensors")
