"""Compilation and caching of oneDNN's bindings, and the reasons why oneDNN is unavailable."""

import ctypes
import importlib.metadata
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from helpers.conv_cases import NHWC, needs_onednn
from helpers.conv_reference import lowered, normal

from resflax.kernels import conv_backend, conv_general_dilated, describe_backend, onednn


def fake_compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.slow
@needs_onednn
def test_bindings_are_compiled_once(monkeypatch, tmp_path):
    library = onednn._wheel_file(onednn.LIBRARY_WHEEL, "lib/libdnnl.so.3")
    header = onednn._wheel_file(onednn.HEADERS_WHEEL, "include/oneapi/dnnl/dnnl.hpp")
    paths = library, header.parents[2]
    compiler = onednn._compile_command(*paths)[0]
    script = f'echo >> {tmp_path}/calls; exec {compiler} "$@"'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path / "c++", script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert onednn._compile_once(onednn._compile_command(*paths)).ResflaxConvolve
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    assert [p.suffix for p in (tmp_path / "resflax").iterdir()] == [".so"]
    # A cache directory that cannot be created, because its parent is a file.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "calls"))
    assert onednn._compile_once(onednn._compile_command(*paths)).ResflaxConvolve


WHEEL_FILE, LOAD = onednn._wheel_file, onednn._load


@pytest.fixture
def uncached(monkeypatch, tmp_path):
    """Repeats the search, as if the wheels were installed and the cache was empty."""
    wheel_file = lambda wheel, name: tmp_path / "prefix" / name  # noqa: E731
    load = lambda path: None if path.name == "libdnnl.so.3" else LOAD(path)  # noqa: E731
    monkeypatch.setattr(onednn, "_bindings", onednn._bindings.__wrapped__)
    monkeypatch.setattr(onednn, "_wheel_file", wheel_file)
    monkeypatch.setattr(onednn, "_load", load)
    monkeypatch.setattr(onednn, "unavailable_reason", onednn.unavailable_reason.__wrapped__)
    monkeypatch.setattr(onednn, "supports", onednn.supports.__wrapped__)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(onednn.sys, "platform", "linux")
    monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def assert_unavailable(reason):
    """Checks the reason, and that convolutions fall back to pure JAX and report it."""
    assert onednn.unavailable_reason() == reason
    with conv_backend("auto"):
        assert describe_backend() == f"convolutions: pure JAX ({reason})"
        x, w = normal((1, 6, 6, 8)), normal((3, 3, 8, 8))
        options = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "dimension_numbers": NHWC}
        text = lowered(lambda x, w: conv_general_dilated(x, w, **options), "cpu", x, w)
        assert onednn.CUSTOM_CALL not in text


INSTALL = "pip install onednn-cpu-gomp==2023.2.0 onednn-devel-cpu-gomp==2023.2.0"


@pytest.mark.parametrize("missing", ["onednn-cpu-gomp", "onednn-devel-cpu-gomp"])
def test_missing_wheel_is_named(missing, uncached):
    def files(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return [SimpleNamespace(locate=lambda: __file__)]

    def wheel_file(wheel, name):
        return WHEEL_FILE(wheel, Path(__file__).name) and Path(name)

    uncached.setattr(onednn, "_wheel_file", wheel_file)
    uncached.setattr(importlib.metadata, "files", files)
    assert_unavailable(f"oneDNN needs the package {missing}: {INSTALL}")


def test_wheel_without_its_files_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    message = "the package onednn-cpu-gomp lacks its file lib/libdnnl.so.3: pip install"
    with pytest.raises(onednn.UnavailableError, match=message):
        onednn._wheel_file("onednn-cpu-gomp", "lib/libdnnl.so.3")


def test_missing_compiler_is_named(uncached):
    uncached.setenv("PATH", "")
    uncached.delenv("CXX", raising=False)
    assert_unavailable("oneDNN needs a C++ compiler: apt install g++")


def test_openmp_needs_a_gnu_compiler(tmp_path, monkeypatch):
    versions = {"clang++": "clang version 18", "g++": "g++ 13. Free Software Foundation, Inc."}
    paths = {name: fake_compiler(tmp_path / name, f"echo {v}") for name, v in versions.items()}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", paths["clang++"])
    assert onednn._find_compiler(needs_gnu=False) == paths["clang++"]
    assert onednn._find_compiler(needs_gnu=True) == paths["g++"]
    (tmp_path / "g++").unlink()
    with pytest.raises(
        onednn.UnavailableError, match=r"needs g\+\+, for OpenMP: apt install g\+\+"
    ):
        onednn._find_compiler(needs_gnu=True)


def test_missing_libgomp_is_named(uncached, tmp_path):
    error = "libgomp.so.1: cannot open shared object file: No such file or directory"

    def cdll(path):
        assert path == str(tmp_path / "prefix" / "lib" / "libdnnl.so.3")
        raise OSError(error)

    uncached.setattr(onednn, "_load", LOAD)
    uncached.setattr(ctypes, "CDLL", cdll)
    assert_unavailable("oneDNN needs libgomp.so.1: apt install libgomp1")


@needs_onednn
def test_loader_error_of_libdnnl_names_a_missing_library(tmp_path):
    library = onednn._wheel_file(onednn.LIBRARY_WHEEL, "lib/libdnnl.so.3").read_bytes()
    # The process may have loaded libgomp already, so libdnnl gets a dependency of another name.
    copy = tmp_path / "libdnnl.so.3"
    copy.write_bytes(library.replace(b"libgomp.so.1\0", b"libgomp.so.9\0"))
    message = "^oneDNN needs libgomp.so.9: apt install libgomp1$"
    with pytest.raises(onednn.UnavailableError, match=message):
        onednn._load(copy)


def test_compiler_error_is_quoted(uncached, tmp_path):
    script = "echo warning: first >&2; echo x.cc:1: error: no such header >&2; exit 1"
    compiler = fake_compiler(tmp_path / "bad-c++", script)
    uncached.setenv("CXX", compiler)
    error = "x.cc:1: error: no such header"
    assert_unavailable(f"{compiler} failed to compile onednn.cc: {error}")
    assert not os.path.exists(tmp_path / "cache")


def test_library_that_does_not_load_is_quoted(uncached, tmp_path):
    script = 'for last; do :; done; echo nonsense > "$last"'
    uncached.setenv("CXX", fake_compiler(tmp_path / "odd-c++", script))
    reason = onednn.unavailable_reason()
    assert reason.startswith("oneDNN does not load: ")
    assert_unavailable(reason)


def test_other_machines_are_unsupported(uncached):
    uncached.setattr(onednn.platform, "machine", lambda: "arm64")
    assert_unavailable("oneDNN needs Linux on x86_64")


def test_unexpected_errors_do_not_raise(uncached):
    def wheel_file(wheel, name):
        raise KeyError("metadata\nof the wheel")

    uncached.setattr(onednn, "_wheel_file", wheel_file)
    reason = onednn.unavailable_reason()
    assert reason.startswith("oneDNN failed to load: KeyError: ")
    assert "\n" not in reason
    assert_unavailable(reason)


def test_wrong_result_makes_onednn_unavailable(uncached):
    uncached.setattr(onednn, "_bindings", lambda: None)
    uncached.setattr(onednn, "convolve", lambda *args, **kwargs: jnp.zeros((1, 3, 1, 1)))
    assert_unavailable("oneDNN is wrong: it returns [0. 0. 0.] instead of [ 5.  8. 11.]")
