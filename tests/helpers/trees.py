"""Comparison and conversion of trees of arrays."""

import jax
import numpy as np


def assert_trees_close(actual, expected, tolerance=1e-5, *, floor=1e-30):
    """Compares the arrays of two trees of one structure.

    The errors of each array are at most `tolerance` times its largest expected number, or times
    `floor` if that is larger.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(floor, np.abs(b).max()))


def to_float64(tree):
    """Returns the tree as NumPy arrays, those of float32 in float64."""
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else None), tree
    )
