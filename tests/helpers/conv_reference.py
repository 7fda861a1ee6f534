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
    x_padded = np.pad(x, ((0, 0), *np.maximum(padding, 0), (0, 0)))
    xg = x_padded.reshape(*x_padded.shape[:-1], groups, -1)
    crops = np.maximum(np.negative(padding), 0)
    inside = (slice(low, n - high) for n, (low, high) in zip(xg.shape[1:-2], crops, strict=True))
    xg = xg[:, *inside]  # a view: additions to it change `x_padded`
    yg = y.reshape(*y.shape[:-1], groups, -1)
    wg = w.reshape(*w.shape[:-1], groups, -1)
    for position in np.ndindex(*w.shape[:-2]):
        axes = zip(position, dilation, y.shape[1:-1], strides, strict=True)
        at = (slice(None), *(slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, n, s in axes))
        if conv_pass == "fwd":
            yg += np.einsum("n...gi,igo->n...go", xg[at], wg[position])
        elif conv_pass == "dgrad":
            xg[at] += np.einsum("n...go,igo->n...gi", yg, wg[position])
        else:
            pixels = (a.reshape(-1, *a.shape[-2:]) for a in (xg[at], yg))
            wg[position] = np.einsum("pgi,pgo->igo", *pixels)
    if conv_pass == "dgrad":
        starts = np.maximum(padding, 0)[:, 0]
        sizes = zip(starts, shape[1:-1], strict=True)
        return x_padded[:, *(slice(start, start + size) for start, size in sizes)]
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
