"""The readings of a convolution in NumPy and float64, and the measure that all are held to."""

import jax
import jax.numpy as jnp
import numpy as np


def reference(reading, lhs, rhs, shape, *, strides, padding, dilation, groups):
    """The three readings in float64, kernel tap by kernel tap; negative padding crops."""
    lhs, rhs = np.asarray(lhs, np.float64), np.asarray(rhs, np.float64)
    out = np.zeros(shape)
    x, w, y = {"y": (lhs, rhs, out), "x": (out, rhs, lhs), "w": (lhs, out, rhs)}[reading]
    (top, bottom), (left, right) = np.maximum(padding, 0)
    x_padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    xg = x_padded.reshape(*x_padded.shape[:3], groups, -1)
    crops = np.maximum(np.negative(padding), 0)
    inside = (slice(low, n - high) for n, (low, high) in zip(xg.shape[1:3], crops, strict=True))
    xg = xg[:, *inside]  # a view: what is added to it is added to `x_padded`
    yg = y.reshape(*y.shape[:3], groups, -1)
    wg = w.reshape(*w.shape[:3], groups, -1)
    height, width = y.shape[1:3]
    for i, j in np.ndindex(*w.shape[:2]):
        rows = slice(i * dilation[0], i * dilation[0] + (height - 1) * strides[0] + 1, strides[0])
        columns = slice(j * dilation[1], j * dilation[1] + (width - 1) * strides[1] + 1, strides[1])
        if reading == "y":
            yg += np.einsum("nhwgi,igo->nhwgo", xg[:, rows, columns], wg[i, j])
        elif reading == "x":
            xg[:, rows, columns] += np.einsum("nhwgo,igo->nhwgi", yg, wg[i, j])
        else:
            wg[i, j] = np.einsum("nhwgi,nhwgo->igo", xg[:, rows, columns], yg)
    if reading == "x":
        return x_padded[:, top : top + shape[1], left : left + shape[2]]
    return out


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_close(found, expected, tolerance=1e-5):
    """Within `tolerance` of the largest element."""
    assert found.shape == expected.shape
    expected = np.asarray(expected, np.float64)
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert error.max(initial=0) <= tolerance * np.abs(expected).max(initial=0)


def lowered(f, platform, *args):
    """The program that `f` becomes for a platform, as text."""
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
