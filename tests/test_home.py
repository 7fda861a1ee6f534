"""Processes without a home directory, or one that cannot be written; the cache's bound."""

import os

import jax
import pytest

from resflax import UserError, runtime
from resflax.files import user_path
from resflax.weights.hub import fetch


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """Neither HOME nor an entry of the user; the current directory is empty."""

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    yield
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def cache_config():
    """Restores JAX's cache directory, which is unset before."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_path_below_an_unknown_home_is_an_error(no_home, monkeypatch):
    monkeypatch.setenv("HOME", "~")  # restored after the test
    runtime.set_unknown_home()
    with pytest.raises(
        UserError, match="--workdir '~/x' cannot be expanded, since HOME is not set"
    ):
        user_path("~/x", "--workdir")


def test_unknown_home_has_no_cache(no_home, cache_config):
    assert runtime.home_dir() is None
    assert runtime.cache_dir() is None
    assert runtime.enable_compilation_cache() is None


def test_unknown_home_becomes_a_missing_directory(no_home, monkeypatch):
    monkeypatch.setenv("HOME", "~")  # restored after the test
    runtime.set_unknown_home()
    assert not os.path.exists(os.environ["HOME"])
    assert os.path.isabs(os.path.expanduser("~/x"))


def test_downloads_without_a_home_are_refused(no_home):
    with pytest.raises(UserError, match="no home directory to save it in: set HF_HOME"):
        fetch("timm/resnet18.a1_in1k")


@pytest.mark.parametrize("value", ["~/cache", "cache"])
def test_relative_cache_home_is_ignored(value, no_home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(runtime.cache_dir()) == "/home/me/.cache/resflax"


def test_cache_that_cannot_be_written_is_not_used(tmp_path, monkeypatch, cache_config):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert runtime.enable_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_cache_keeps_the_programs_used_last(tmp_path, monkeypatch, cache_config):
    folder = tmp_path / "resflax" / "xla"
    folder.mkdir(parents=True)
    for age in range(5):
        (folder / f"{age}-cache").write_bytes(bytes(100))
        os.utime(folder / f"{age}-cache", (2e9 - age, 1e9))
    (folder / "subfolder").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(runtime, "MAX_CACHE_BYTES", 350)
    assert runtime.enable_compilation_cache() == folder
    assert {path.name for path in folder.iterdir()} == {
        "0-cache",
        "1-cache",
        "2-cache",
        "subfolder",
    }
