"""Selection and description of the backend, and the dependencies of `resflax.kernels`."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from resflax import UserError
from resflax.kernels import backend, conv_backend, describe_backend, onednn

REASON = "oneDNN needs a C++ compiler: apt install g++"


@pytest.fixture
def without_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "supports", lambda dtype: False)
    monkeypatch.setattr(onednn, "unavailable_reason", lambda: REASON)


@pytest.fixture
def with_onednn(monkeypatch):
    monkeypatch.setattr(onednn, "supports", lambda dtype: dtype == jnp.float32)
    monkeypatch.setattr(onednn, "unavailable_reason", lambda: None)


@pytest.mark.parametrize("name", ["auto", "onednn"])
def test_description_names_onednn_where_it_is_used(name, with_onednn):
    with conv_backend(name):
        assert describe_backend() == "convolutions: oneDNN"


@pytest.mark.parametrize("name", ["auto", "onednn"])
def test_description_says_what_onednn_lacks(name, without_onednn):
    with conv_backend(name):
        assert describe_backend() == f"convolutions: pure JAX ({REASON})"


@pytest.mark.parametrize("dtype", [jnp.float32, "float32", "bfloat16"])
@pytest.mark.parametrize(("name", "label"), [("cpu", "pure JAX"), ("xla", "XLA")])
def test_description_of_a_requested_backend_has_no_reason(name, label, dtype, without_onednn):
    with conv_backend(name):
        assert describe_backend(dtype) == f"convolutions: {label}"


def test_description_covers_dtypes(with_onednn):
    with conv_backend("auto"):
        assert describe_backend(jnp.bfloat16) == (
            "convolutions: pure JAX (oneDNN does not support bfloat16 on this CPU)"
        )


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_description_on_accelerators_is_xla(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with conv_backend(name):
        assert describe_backend() == "convolutions: XLA"


def test_conv_backend_restores_the_previous_backend():
    before = backend.default_backend
    with conv_backend("cpu"):
        with conv_backend("xla"):
            assert backend.default_backend == "xla"
        assert backend.default_backend == "cpu"
        with pytest.raises(KeyError), conv_backend("xla"):
            raise KeyError
        assert backend.default_backend == "cpu"
    assert backend.default_backend == before


def test_conv_backend_rejects_unknown_names():
    message = "unknown convolution backend 'plain': expected one of auto, xla, cpu, onednn"
    with pytest.raises(UserError, match=message), conv_backend("plain"):
        pass


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "line"), [("xla", "convolutions: XLA"), ("cpu", "convolutions: pure JAX")]
)
def test_environment_variable_sets_the_backend(value, line):
    code = "import resflax.kernels; print(resflax.kernels.describe_backend())"
    result = run_python(code, RESFLAX_CONV=value)
    assert (result.stdout, result.returncode) == (f"{line}\n", 0), result.stderr


@pytest.mark.slow
def test_environment_variable_is_checked_at_import():
    result = run_python("import resflax.kernels.conv", RESFLAX_CONV="nonsense")
    assert result.returncode == 1
    message = "unknown RESFLAX_CONV 'nonsense': expected one of auto, xla, cpu, onednn"
    assert result.stderr.splitlines()[-1].endswith(message)


@pytest.mark.slow
def test_kernels_import_only_jax_and_numpy():
    result = run_python("import sys, resflax.kernels; print(*sys.modules)")
    modules = set(result.stdout.split())
    assert not modules & {"flax", "optax", "orbax", "tensorflow", "torch", "grain"}
    packages = {name.split(".")[1] for name in modules if name.startswith("resflax.")}
    assert packages == {"kernels", "errors", "files", "runtime"}
