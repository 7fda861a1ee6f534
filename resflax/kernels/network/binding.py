"""Python's side of `network.cc`."""

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from resflax.kernels import onednn

SOURCE = Path(__file__).with_name("network.cc")
FLAGS = ("-O3", "-march=native", "-fopenmp")
# Iterations for which an OpenMP thread waits actively for the next parallel region (about 50 us).
# GNU's default, 300,000, wastes milliseconds per layer where other processes need the cores.
SPIN_COUNT = "5000"
_LOCK = threading.Lock()
_MESSAGE_BYTES = 512


@functools.cache
def unavailable_reason() -> str | None:
    """Returns None if networks can run here, else one line with what is missing.

    The first call compiles `network.cc` if it is not in the cache (about ten seconds). It never
    raises.
    """
    try:
        with _LOCK:
            with _short_waits():
                reason = onednn.unavailable_reason()
            if reason is not None:
                return reason
            _library()
    except (onednn.UnavailableError, OSError) as error:
        return str(error)
    return None


@contextmanager
def _short_waits() -> Iterator[None]:
    """Sets libgomp's GOMP_SPINCOUNT for the case that it is loaded in the context.

    It has no effect if libgomp is loaded already, or if the user has chosen how threads wait.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


class Network:
    """A network that oneDNN runs in one call. Memory is freed with the object.

    Calls from several threads may overlap; the GIL is released. All cores are used, or as many as
    OMP_NUM_THREADS says at the time of creation.

    Args:
      code: the operations, as `Program` in `program.h` reads them.
      arrays: the float32 arrays to which `code` refers.
      channels: number of image channels.
      features: size of the output's last axis.
      bfloat16: whether feature maps and convolution kernels are bfloat16 instead of float32.

    Raises:
      ValueError: if `code` is invalid.
    """

    def __init__(
        self,
        code: Sequence[float],
        arrays: Sequence[Float32[np.ndarray, "..."]],
        *,
        channels: int,
        features: int,
        bfloat16: bool = False,
    ) -> None:
        self._library, self.features = _library(), features
        self.channels = channels
        # The network reads these arrays whenever it sees a new image size.
        self._arrays = [np.ascontiguousarray(a, np.float32) for a in arrays]
        program = np.asarray(code, np.float64)
        shapes = np.array([n for a in self._arrays for n in (a.ndim, *a.shape)], np.int64)
        pointers = (ctypes.c_void_p * len(self._arrays))(*(a.ctypes.data for a in self._arrays))
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self._handle = self._library.ResflaxNetworkCreate(
            program.ctypes.data,
            len(program),
            pointers,
            shapes.ctypes.data,
            len(self._arrays),
            channels,
            int(bfloat16),
            message,
            _MESSAGE_BYTES,
        )
        if not self._handle:
            raise ValueError(message.value.decode(errors="replace"))
        weakref.finalize(self, self._library.ResflaxNetworkDestroy, self._handle)

    def __call__(
        self, images: Shaped[np.ndarray, "n height width channels"]
    ) -> Float32[np.ndarray, "n features"]:
        """Computes the outputs for a batch of float32 or uint8 images.

        Raises:
          ValueError: if the shape does not fit, or the network cannot read uint8 images.
        """
        if images.ndim != 4 or images.shape[3] != self.channels:
            raise ValueError(
                f"expected images of shape (n, height, width, {self.channels}): got {images.shape}"
            )
        is_uint8 = images.dtype == np.uint8
        images = np.ascontiguousarray(images, np.uint8 if is_uint8 else np.float32)
        n, height, width, _ = images.shape
        output = np.empty((n, self.features), np.float32)
        if not n:
            return output
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        done = self._library.ResflaxNetworkPredict(
            self._handle,
            images.ctypes.data,
            int(is_uint8),
            n,
            height,
            width,
            output.ctypes.data,
            message,
            _MESSAGE_BYTES,
        )
        if not done:
            raise ValueError(f"oneDNN: {message.value.decode(errors='replace')}")
        return output


@functools.cache
def _library() -> Any:
    """Returns the compiled `network.cc`.

    Raises:
      UnavailableError: if something is missing.
    """
    headers = sorted(SOURCE.parent.glob("*.h"))
    library = onednn.compile_with_onednn(SOURCE, headers=headers, flags=FLAGS)
    pointer: Any = ctypes.c_void_p
    integer: Any = ctypes.c_int
    size: Any = ctypes.c_int64
    library.ResflaxNetworkCreate.restype = pointer
    library.ResflaxNetworkCreate.argtypes = [
        *[pointer, size, pointer, pointer, size, size, integer, pointer, size]
    ]
    library.ResflaxNetworkDestroy.restype = None
    library.ResflaxNetworkDestroy.argtypes = [pointer]
    library.ResflaxNetworkPredict.argtypes = [
        *[pointer, pointer, integer, size, size, size, pointer, pointer, size]
    ]
    return library
