"""Convolutions through oneDNN, an optional road on x86 CPUs that `pip install -e ".[cpu]"` opens.

`onednn.cc`, a custom call of XLA (https://docs.jax.dev/en/latest/ffi.html), is compiled on first
use into the user's cache folder. `why_not()` says whether all that is needed is there.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from resflax.runtime import cache_dir

Array = jax.Array
Pair = tuple[int, int]

WHEEL = "onednn-cpu-gomp"
TARGET = "resflax_onednn_convolve"
INSTALL = 'pip install -e ".[cpu]"'
SOURCE = Path(__file__).with_name("onednn.cc")
_LOCK = threading.Lock()


class _MissingError(Exception):
    """What is missing, and what to do, in one line."""


@functools.cache
def why_not() -> str | None:
    """None if the road is open, else one line that says what is missing and what to do.

    The first call finds oneDNN, compiles and loads `onednn.cc` (seconds, once per machine) and
    checks a small convolution against NumPy; it may stand inside a trace and in any thread.
    """
    try:
        with _LOCK:
            _library()
            _self_test()
    except (_MissingError, OSError) as error:
        return str(error)
    return None


@functools.cache
def supports(dtype: Any) -> bool:
    """Whether `convolve` takes this dtype: float32, and bfloat16 where oneDNN does on this CPU."""
    if why_not() is not None:
        return False
    dtype = np.dtype(dtype)
    return dtype == np.float32 or (dtype == jnp.bfloat16 and bool(_library().ResflaxBfloat16()))


def convolve(
    reading: Literal["y", "x", "w"],
    lhs: Array,
    rhs: Array,
    shape: tuple[int, ...],
    *,
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """One reading of `T(x, w, g) = <conv(x, w), g>`; call it only where `why_not()` is None.

    `x` is NHWC, `w` is HWIO with `I = C / groups` (as `feature_group_count` of
    `lax.conv_general_dilated`), `g` and `conv(x, w)` are NHWC. All may have more axes in front,
    equal in all: members that are convolved one by one; `vmap` adds such an axis. It has no
    gradient of its own: the readings are each other's.

    Args:
      reading: "y": `(x, w)` to `conv(x, w)`; "x": `(g, w)` to the gradient of T for `x`; "w":
        `(x, g)` to the gradient for `w`.
      lhs: float32 or bfloat16.
      rhs: of the dtype of `lhs`.
      shape: of the result, whose dtype is that of `lhs`; sums are in float32.
      strides: over height and width.
      padding: before and after, of height and of width; not negative.
      dilation: of the kernel; 1 is none.
      groups: of channels.

    Raises:
      jax.errors.JaxRuntimeError: when run, if shapes or dtypes do not fit together.
    """
    call = jax.ffi.ffi_call(
        TARGET, jax.ShapeDtypeStruct(shape, lhs.dtype), vmap_method="broadcast_all"
    )
    return call(
        lhs,
        rhs,
        reading=reading,
        strides=np.array(strides, np.int64),
        padding=np.array(padding, np.int64).ravel(),
        dilation=np.array(dilation, np.int64),
        groups=np.int64(groups),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled `onednn.cc`, loaded and known to XLA.

    Raises:
      _MissingError: if something is missing.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise _MissingError("oneDNN needs Linux on x86_64: leave it to XLA here")
    library = _load(_command())
    capsule = jax.ffi.pycapsule(library.ResflaxConvolve)
    jax.ffi.register_ffi_target(TARGET, capsule, platform="cpu")
    return library


def _command() -> list[str]:
    """The compiler's command, all but `-o` and the file that it makes."""
    library = _wheel_file(WHEEL, "lib/libdnnl.so.3")
    include = _wheel_file("onednn-devel-cpu-gomp", "include/oneapi/dnnl/dnnl.hpp").parents[2]
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, filter(None, names))), None)
    if compiler is None:
        raise _MissingError("oneDNN needs a C++ compiler and there is none: apt install g++")
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-w", f"-Wl,-rpath,{library.parent}"]
    headers = [f"-I{jax.ffi.include_dir()}", f"-I{include}"]
    return [compiler, *flags, *headers, str(SOURCE), str(library)]


def _wheel_file(wheel: str, name: str) -> Path:
    """The path of a file that an installed wheel brought, wherever it was put."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        raise _MissingError(f"oneDNN is not installed ({wheel}): {INSTALL}") from None
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.as_posix().endswith(name) and path.exists():
            return path
    raise _MissingError(f"the wheel {wheel} has lost its {name}: {INSTALL} --force-reinstall")


def _load(command: list[str]) -> ctypes.CDLL:
    """Compiles, unless that was done before, and loads."""
    versions = [importlib.metadata.version(name) for name in (WHEEL, "jaxlib")]
    parts = [SOURCE.read_text(), *versions, *command]
    name = f"onednn-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    folder = cache_dir()
    if (folder / name).exists():
        return _open(folder / name)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, name)
        _run([*command, "-o", str(made)])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Another process may do the same: a rename is whole or not at all.
            partial = folder / f"{name}.{os.getpid()}"
            shutil.copyfile(made, partial)
            return _open(partial.replace(folder / name))
        except OSError:
            return _open(made)  # a folder that cannot be written; what is loaded may be deleted


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        said = lines[0] if lines else f"exit status {done.returncode}"
        raise _MissingError(f"{command[0]} could not compile onednn.cc: {said}")


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise _MissingError(f"oneDNN does not load: {error}") from error


def _self_test() -> None:
    """A small convolution against NumPy, outside of any trace that this may stand in."""
    x, w = np.arange(5, dtype=np.float32), np.arange(3, dtype=np.float32)
    how: Any = {"strides": (1, 1), "padding": ((0, 0), (0, 0))}
    try:
        cpu = jax.local_devices(backend="cpu")[0]
        with jax.ensure_compile_time_eval(), jax.default_device(cpu):
            lhs, rhs = jnp.asarray(x).reshape(1, 5, 1, 1), jnp.asarray(w).reshape(3, 1, 1, 1)
            found = np.asarray(convolve("y", lhs, rhs, (1, 3, 1, 1), **how)).ravel()
    except Exception as error:
        raise _MissingError(f"oneDNN does not run: {str(error).splitlines()[0]}") from error
    expected = np.correlate(x, w, "valid")
    if not np.array_equal(found, expected):
        raise _MissingError(f"oneDNN computes {found} for {expected}: leave it to XLA here")
