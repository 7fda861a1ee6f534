"""The passes of a convolution in NumPy and float64, and comparison with them."""

import jax
import jax.numpy as jnp
import numpy as np


def reference(conv_pass, lhs, rhs, shape, *, strides, padding, dilation, groups):
    """Computes a pass in float64, one kernel position at a time; negative padding crops."""
    lhs, rhs = np.asarray(lhs, np.float64), np.asarray(rhs, np.float64)
    out = np.zeros(shape)
    x, w, y = {"fwd": (lhs, rhs, out), "dgrad": (out, rhs, lhs), "wgrad": (lhs, out, rhs)}[
        conv_pass
    ]
    (top, bottom), (left, right) = np.maximum(padding, 0)
    x_padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    xg = x_padded.reshape(*x_padded.shape[:3], groups, -1)
    crops = np.maximum(np.negative(padding), 0)
    inside = (slice(low, n - high) for n, (low, high) in zip(xg.shape[1:3], crops, strict=True))
    xg = xg[:, *inside]  # a view: additions to it change `x_padded`
    yg = y.reshape(*y.shape[:3], groups, -1)
    wg = w.reshape(*w.shape[:3], groups, -1)
    height, width = y.shape[1:3]
    for i, j in np.ndindex(*w.shape[:2]):
        rows = slice(i * dilation[0], i * dilation[0] + (height - 1) * strides[0] + 1, strides[0])
        columns = slice(j * dilation[1], j * dilation[1] + (width - 1) * strides[1] + 1, strides[1])
        if conv_pass == "fwd":
            yg += np.einsum("nhwgi,igo->nhwgo", xg[:, rows, columns], wg[i, j])
        elif conv_pass == "dgrad":
            xg[:, rows, columns] += np.einsum("nhwgo,igo->nhwgi", yg, wg[i, j])
        else:
            wg[i, j] = np.einsum("nhwgi,nhwgo->igo", xg[:, rows, columns], yg)
    if conv_pass == "dgrad":
        return x_padded[:, top : top + shape[1], left : left + shape[2]]
    return out


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_close(actual, expected, tolerance=1e-5):
    """Asserts that no error exceeds `tolerance` times the largest element."""
    assert actual.shape == expected.shape
    expected = np.asarray(expected, np.float64)
    error = np.abs(np.asarray(actual, np.float64) - expected)
    assert error.max(initial=0) <= tolerance * np.abs(expected).max(initial=0)


def lowered(f, platform, *args):
    """Returns the StableHLO text of `f` lowered for `platform`."""
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
