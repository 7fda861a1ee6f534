"""Arithmetic on parameters at build time, in float64."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Vector = Float[np.ndarray, " channels"]
Kernel = Float[np.ndarray, "kernel_height kernel_width in out"]


class Affine(NamedTuple):
    """The map `x * scale + bias` per channel."""

    scale: Vector
    bias: Vector


def batch_norm_affine(
    scale: Vector, bias: Vector, mean: Vector, var: Vector, epsilon: float
) -> Affine:
    """Returns batch norm with fixed statistics as an affine map (arXiv:1502.03167, algorithm 2).

    >>> one = np.ones(1)
    >>> [float(x[0]) for x in batch_norm_affine(one, one, 3 * one, 4 * one, 0.0)]
    [0.5, -0.5]
    """
    factor = scale / np.sqrt(var + epsilon)
    return Affine(factor, bias - mean * factor)


def standardize(kernel: Kernel, epsilon: float) -> Kernel:
    """Returns a kernel whose output channels have mean 0 and variance 1.

    As `resflax.nn.convs.ConvKind` (Qiao et al. 2019, arXiv:1903.10520, eq. 5).
    """
    axes = tuple(range(kernel.ndim - 1))
    return (kernel - kernel.mean(axes)) / np.sqrt(kernel.var(axes) + epsilon)
