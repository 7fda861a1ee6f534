"""How the members of an ensemble run on one device: vectorized, or one after another.

`MEMBER_TABLE` makes two choices: how the whole step runs (`choose_method`), and how XLA computes
convolutions in a vectorized step (`member_convolution`). Its rows of CPUs follow the measurements
of docs/performance.md, "Ensembles"; its rows of GPUs and TPUs have not been measured. The
convolutions of oneDNN and pure JAX choose separately, in `onednn.cc` and `cpu_conv.py`.
"""

import os
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from resflax.errors import unknown
from resflax.kernels import backend

Method = Literal["vmap", "map"]
MemberConvolution = Literal["grouped", "loop"]

MEMBER_CONVOLUTIONS = ("auto", "grouped", "loop")
# The environment variable RESFLAX_MEMBER_CONV overrides the table for measurements.
default_member_convolution = os.environ.get("RESFLAX_MEMBER_CONV") or "auto"
if default_member_convolution not in MEMBER_CONVOLUTIONS:
    raise unknown("RESFLAX_MEMBER_CONV", default_member_convolution, MEMBER_CONVOLUTIONS)


class MemberRow(NamedTuple):
    """Row of `MEMBER_TABLE`.

    Attributes:
      max_pixels: pixels of a member's batch up to which the step is vectorized.
      convolution: XLA's convolutions in a vectorized step: one grouped convolution of all members,
        or a loop over them.
    """

    max_pixels: int
    convolution: MemberConvolution = "loop"


# By platform and backend of convolutions. On a CPU, the feature maps of all members of a vectorized
# step leave the cache where those of one member would stay in it. The rows of accelerators were not
# measured here; memory limits them. On a GPU, ten convolutions took 4.92 ms as one grouped
# convolution and 1.71 ms in a loop (https://github.com/jax-ml/jax/issues/26568).
MEMBER_TABLE: dict[tuple[str, str], MemberRow] = {
    ("cpu", "onednn"): MemberRow(2**14),
    ("cpu", "cpu"): MemberRow(2**13),
    ("cpu", "xla"): MemberRow(0),
    ("gpu", "xla"): MemberRow(2**20),
    ("tpu", "xla"): MemberRow(2**20, "grouped"),
}
DEFAULT_ROW = MemberRow(0)


def choose_method(platform: str, pixels: int, *, dtype: Any = jnp.float32) -> Method:
    """Returns how a device runs the training step of its members.

    Args:
      platform: platform of the device.
      pixels: number of images of a member's batch on the device, times their height and width.
      dtype: dtype of images and kernels, or its name.

    Returns:
      "vmap" for one vectorized step of all members. "map" for a loop over the members, which
      computes each by the program of a single run, in the memory of a single run.

    >>> choose_method("cpu", 64 * 224 * 224)
    'map'
    """
    name = backend.select(jnp.dtype(dtype)) if platform == "cpu" else "xla"
    row = MEMBER_TABLE.get((platform, name), DEFAULT_ROW)
    return "vmap" if pixels <= row.max_pixels else "map"


def member_convolution(platform: str) -> MemberConvolution:
    """Returns how XLA's convolutions with a member axis are computed on a platform."""
    if default_member_convolution != "auto":
        return default_member_convolution  # type: ignore[return-value]
    return MEMBER_TABLE.get((platform, "xla"), DEFAULT_ROW).convolution
