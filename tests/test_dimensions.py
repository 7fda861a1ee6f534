"""Networks of signals and of volumes, and their parts, against those of images and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import randomized, run, variables_of
from helpers.small_specs import shrink

from resflax import create_model
from resflax.errors import UserError
from resflax.nn import stack_params
from resflax.zoo import get_spec

PARTS = {
    "A": {"shortcut": "A"},
    "C": {"shortcut": "C"},
    "D_deep": {"shortcut": "D", "stem": "deep"},
    "preact_se": {"preact": True, "attention": "se"},
    "rs_eca": {"stem": "rs", "attention": "eca"},
    "blur": {"antialias": "blur"},
    "average": {"antialias": "average"},
    "group": {"norm": "group"},
    "evonorm": {"norm": "evonorm_s0"},
    "frn_bit": {"norm": "frn_tlu", "stem": "bit"},
    "standardized": {"conv": "standardized"},
    "dilated": {"output_stride": 8, "depths": (1, 1, 2), "widths": (32, 64, 64)},
    "batch_ensemble": {"ensemble": "batch", "members": 2},
    "mimo": {"ensemble": "mimo", "members": 2},
}


def make(name, dimensions, **overrides):
    spec = shrink(get_spec("resnet18"), dimensions=dimensions, **PARTS.get(name, {}), **overrides)
    return create_model(spec)


def input_of(dimensions, seed=0, channels=3):
    shape = (2, *[12, 10, 8][:dimensions], channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outputs(model, x, seed=0):
    variables = randomized(variables_of(model, x.shape), seed)
    return run(lambda v, x: model.apply(v, x, train=False), variables, x)


def widened(variables, axis_sizes):
    """Returns the variables of a network of images that does to each row what one of signals does.

    A kernel of size k becomes one of k x k whose middle row is the kernel and the others zero.
    """

    def widen(path, x):
        if path[-1].key != "kernel" or x.ndim != 3:
            return x
        size = x.shape[0]
        return np.zeros((size, *x.shape), x.dtype) + np.eye(size)[size // 2][:, None, None, None] * x

    return jax.tree_util.tree_map_with_path(widen, variables)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["C", "preact_se", "rs_eca", "group", "frn_bit", "dilated"])
def test_signals_match_images_that_repeat_them(name):
    """Rows of an image are computed alone by kernels that are zero but for their middle row."""
    signals, images = make(name, 1, norm="group"), make(name, 2, norm="group")
    x = input_of(1)
    variables = randomized(variables_of(signals, x.shape))
    repeated = np.repeat(x[:, None], 5, 1)
    expected = run(lambda v, x: signals.apply(v, x, train=False), variables, x)
    actual = run(lambda v, x: images.apply(v, x, train=False), widened(variables, 5), repeated)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
