"""Convolution passes through oneDNN on x86-64 Linux.

`onednn.cc`, an XLA custom call (https://docs.jax.dev/en/latest/ffi.html), is compiled on first use
into the user's cache directory. `unavailable_reason()` returns what is missing, if anything.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from resflax.kernels.conv_params import ConvPass, Padding, Shape
from resflax.runtime import cache_dir

LIBRARY_WHEEL = "onednn-cpu-gomp"
HEADERS_WHEEL = "onednn-devel-cpu-gomp"
INSTALL = f"pip install {LIBRARY_WHEEL}==2023.2.0 {HEADERS_WHEEL}==2023.2.0"
CUSTOM_CALL = "resflax_onednn_convolve"
SOURCE = Path(__file__).with_name("onednn.cc")
_LOCK = threading.Lock()


class UnavailableError(Exception):
    """One line: what oneDNN lacks on this machine, and how to get it."""


@functools.cache
def unavailable_reason() -> str | None:
    """Returns None if oneDNN can be used, else one line with what is missing and how to get it.

    The first call compiles `onednn.cc` if it is not in the cache (about three seconds), loads it
    and checks a small convolution against NumPy. It never raises, and can be called during tracing
    and from any thread.
    """
    try:
        with _LOCK:
            _bindings()
            _self_test()
    except (UnavailableError, OSError) as error:
        return str(error)
    except Exception as error:  # the caller falls back to pure JAX, whatever went wrong
        return f"oneDNN failed to load: {type(error).__name__}: {_first_line(error)}"
    return None


@functools.cache
def supports(dtype: Any) -> bool:
    """Returns whether `convolve` supports `dtype` here: float32, and bfloat16 on CPUs that have it.

    False if oneDNN is unavailable.
    """
    if unavailable_reason() is not None:
        return False
    dtype = np.dtype(dtype)
    return dtype == np.float32 or (dtype == jnp.bfloat16 and bool(_bindings().ResflaxBfloat16()))


def convolve(
    conv_pass: ConvPass,
    lhs: Float[Array, " *shape"],
    rhs: Float[Array, " *shape"],
    shape: Shape,
    *,
    strides: Shape,
    padding: Padding,
    dilation: Shape = (1, 1),
    groups: int = 1,
) -> Float[Array, " *shape"]:
    """Computes a pass; call it only if `unavailable_reason()` is None.

    Operands, as in `conv_params.py`: x, g and the output are NHWC or NDHWC; w is HWIO or DHWIO
    with `C / groups` inputs. All may have the same further axes in front, one convolution each;
    `vmap` adds such an axis. Several convolutions run at the same time, each on one thread. Not
    differentiable: the primitive of `conv.py` is.

    Args:
      conv_pass: "fwd", "dgrad" or "wgrad".
      lhs: first operand, float32 or bfloat16.
      rhs: second operand, of the dtype of `lhs`.
      shape: shape of the result. Its dtype is that of `lhs`; sums are accumulated in float32.
      strides: over the spatial axes, two or three.
      padding: before and after each of these axes, not negative.
      dilation: dilation of the kernel; 1 for none.
      groups: number of channel groups.

    Raises:
      jax.errors.JaxRuntimeError: at run time, if shapes or dtypes are inconsistent.
    """
    call = jax.ffi.ffi_call(
        CUSTOM_CALL, jax.ShapeDtypeStruct(shape, lhs.dtype), vmap_method="broadcast_all"
    )
    return call(
        lhs,
        rhs,
        conv_pass=conv_pass,
        strides=np.array(strides, np.int64),
        padding=np.array(padding, np.int64).ravel(),
        dilation=np.array(dilation, np.int64),
        groups=np.int64(groups),
    )


@functools.cache
def _bindings() -> ctypes.CDLL:
    """Returns the compiled `onednn.cc`, after registering it with XLA.

    Raises:
      UnavailableError: if something is missing.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnavailableError("oneDNN needs Linux on x86_64")
    bindings = compile_with_onednn(SOURCE)
    capsule = jax.ffi.pycapsule(bindings.ResflaxConvolve)
    jax.ffi.register_ffi_target(CUSTOM_CALL, capsule, platform="cpu")
    return bindings


def compile_with_onednn(
    source: Path, *, headers: Sequence[Path] = (), flags: Sequence[str] = ("-O1",)
) -> ctypes.CDLL:
    """Compiles a C++ file that uses oneDNN, unless it is in the cache, and loads it.

    Args:
      source: the file.
      headers: files that it includes, apart from oneDNN's and XLA's.
      flags: compiler options, with the level of optimization. With `-march=native`, the cache is
        specific to the CPU's instruction set.

    Raises:
      UnavailableError: if something is missing or the file does not compile.
    """
    library = _wheel_file(LIBRARY_WHEEL, "lib/libdnnl.so.3")
    header = _wheel_file(HEADERS_WHEEL, "include/oneapi/dnnl/dnnl.hpp")
    _load(library)  # before compiling, because it fails without libgomp
    command = _compile_command(library, header.parents[2], source, flags)
    return _compile_once(command, (source, *headers))


def _wheel_file(wheel: str, name: str) -> Path:
    """Returns the path of an installed wheel's file whose path ends with `name`."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError(f"oneDNN needs the package {wheel}: {INSTALL}") from None
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.as_posix().endswith(name) and path.exists():
            return path
    raise UnavailableError(
        f"the package {wheel} lacks its file {name}: {INSTALL} --force-reinstall"
    )


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        missing = re.match(r"(\S+): cannot open shared object file", str(error))
        if missing and missing[1].startswith("libgomp"):
            reason = f"oneDNN needs {missing[1]}: apt install libgomp1"
        elif missing:
            reason = f"oneDNN needs the shared library {missing[1]}"
        else:
            reason = f"oneDNN does not load: {_first_line(error)}"
        raise UnavailableError(reason) from error


def _compile_command(
    library: Path, include: Path, source: Path = SOURCE, flags: Sequence[str] = ("-O1",)
) -> list[str]:
    """Returns the compiler's command without its `-o` option.

    -O1 compiles `onednn.cc` faster than -O2, and nearly all of its run time is spent in libdnnl.
    """
    compiler = _find_compiler(needs_gnu="-fopenmp" in flags)
    common = ["-std=c++17", "-fPIC", "-shared", "-w", f"-Wl,-rpath,{library.parent}"]
    headers = [f"-I{jax.ffi.include_dir()}", f"-I{include}"]
    return [compiler, *common, *flags, *headers, str(source), str(library)]


def _find_compiler(*, needs_gnu: bool) -> str:
    """Returns the path of a C++ compiler: $CXX if it is set and suitable.

    With `needs_gnu`, only one of GNU is: clang's OpenMP is another library than libgomp, which
    oneDNN uses, so that each would start its own threads.

    Raises:
      UnavailableError: if there is none.
    """
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    for compiler in filter(None, map(shutil.which, filter(None, names))):
        if not needs_gnu or _is_gnu(compiler):
            return compiler
    raise UnavailableError(
        f"oneDNN needs {'g++, for OpenMP' if needs_gnu else 'a C++ compiler'}: apt install g++"
    )


def _is_gnu(compiler: str) -> bool:
    """Returns whether a compiler is GNU's, from what it prints for --version."""
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return "Free Software Foundation" in result.stdout


def _compile_once(command: list[str], sources: Sequence[Path] = (SOURCE,)) -> ctypes.CDLL:
    """Loads the result of `command` from the cache directory, and compiles it if it is not there.

    The file's name is a hash of everything that it depends on.
    """
    versions = [importlib.metadata.version(name) for name in (LIBRARY_WHEEL, "jaxlib")]
    parts = [*(source.read_text() for source in sources), *versions, *command]
    if "-march=native" in command:
        parts.append(_cpu_flags())
    name = f"{sources[0].stem}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    directory = cache_dir()
    if directory and (directory / name).exists():
        return _load(directory / name)
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch, name)
        _compile([*command, "-o", str(compiled)])
        if directory is None:
            return _load(compiled)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Other processes may do the same at the same time, so the file appears by a rename.
            partial = directory / f"{name}.{os.getpid()}"
            shutil.copyfile(compiled, partial)
            cached = partial.replace(directory / name)
        except OSError:  # the cache directory is not writable
            return _load(compiled)  # stays loaded after its file is deleted
        return _load(cached)


def _cpu_flags() -> str:
    """Returns the line of /proc/cpuinfo that lists the CPU's instruction sets."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), "")


def _compile(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line.lower()]
        reason = errors[0] if errors else f"exit status {result.returncode}"
        source = next(Path(part).name for part in command if part.endswith(".cc"))
        raise UnavailableError(f"{command[0]} failed to compile {source}: {reason}")


def _self_test() -> None:
    """Compares a small convolution with NumPy, outside of any trace in progress."""
    x, w = np.arange(5, dtype=np.float32), np.arange(3, dtype=np.float32)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
        with jax.ensure_compile_time_eval(), jax.default_device(cpu):
            lhs, rhs = jnp.asarray(x).reshape(1, 5, 1, 1), jnp.asarray(w).reshape(3, 1, 1, 1)
            padding = ((0, 0), (0, 0))
            y = convolve("fwd", lhs, rhs, (1, 3, 1, 1), strides=(1, 1), padding=padding)
            result = np.asarray(y).ravel()
    except Exception as error:
        raise UnavailableError(f"oneDNN does not run: {_first_line(error)}") from error
    expected = np.correlate(x, w, "valid")
    if not np.array_equal(result, expected):
        raise UnavailableError(f"oneDNN is wrong: it returns {result} instead of {expected}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
