"""Fixup initialization: the rules of the paper, and the growth of the signal."""

import jax
import numpy as np
import pytest

from resflax import create_model
from resflax.nn import Spec, stack_params
from resflax.nn.fixup import fixup_params
from resflax.train import make_optimizer

FIELDS = {"norm": "none", "gate": "fixup", "zero_init": False, "num_classes": 4}
X = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(("block", "exponent"), [("basic", -1 / 2), ("bottleneck", -1 / 4)])
def test_kernels_are_scaled_by_the_number_of_blocks(block, exponent):
    """Rule 2 for two convolutions in a branch, and for three."""
    spec = Spec((3, 2), (4, 8), block, "cifar", 4, **FIELDS)
    params = create_model(spec, scan=False).init(jax.random.key(0), X, train=False)["params"]
    result = fixup_params(spec, params)
    last = 2 if block == "basic" else 3
    for name in ("stage1_block1", "stage2_block2"):
        for i in range(1, last):
            expected = params[name][f"conv{i}"]["kernel"] * 5**exponent
            np.testing.assert_allclose(result[name][f"conv{i}"]["kernel"], expected, rtol=1e-6)
        assert not np.any(result[name][f"conv{last}"]["kernel"])
        assert float(result[name]["gate"]["scale"]) == 1
    assert not any(map(np.any, jax.tree.leaves(result["head"])))
    for name in ("stem_conv", "stage2_block1"):
        same = (
            tree[name] if name == "stem_conv" else tree[name]["Ws"] for tree in (params, result)
        )
        jax.tree.map(np.testing.assert_array_equal, *same)
    stacked = fixup_params(spec, stack_params(params))
    jax.tree.map(np.testing.assert_array_equal, stacked, stack_params(result))


def test_multipliers_are_not_decayed_by_default():
    """Of the parameters whose gradient is 0, weight decay changes the kernels only."""
    spec = Spec((2,), (4,), "basic", "cifar", 4, **FIELDS)
    model = create_model(spec, scan=False)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), X, train=False))["params"]
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    optimizer = make_optimizer("sgd", 0.1, weight_decay=0.5)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert not np.any(updates["stage1_block1"]["gate"]["scale"])
    assert np.any(updates["stage1_block1"]["conv1"]["kernel"])
