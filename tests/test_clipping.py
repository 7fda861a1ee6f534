"""Clipping of gradients by norm, value and adaptively."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.nn import stack_params
from resflax.train.clipping import CLIPPINGS
from resflax.train.optim import make_optimizer

RNG = np.random.default_rng(0)


def draw(shape, scale):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def tree(scale):
    block = {"conv1": {"kernel": (3, 3, 2, 4), "gain": (4,)}, "gate": {"scale": ()}}
    shapes = {f"stage1_block{i}": block for i in (1, 2, 3)}
    shapes |= {"head": {"kernel": (4, 3), "bias": (3,)}}
    return jax.tree.map(lambda s: draw(s, scale), shapes, is_leaf=lambda x: isinstance(x, tuple))


PARAMS, GRADIENTS = tree(1.0), tree(3.0)
PARAMS["stage1_block1"]["conv1"]["gain"] *= 0  # as `zero_init` has it


def clip(mode, limit, gradients, params):
    clipping = CLIPPINGS[mode](limit)
    return jax.jit(clipping.update)(gradients, clipping.init(params), params)[0]


def test_adaptive_clipping_is_the_papers_equation():
    """Brock et al. 2021b, eq. 3, for each output channel, and for vectors as a whole."""
    result = clip("agc", 0.5, GRADIENTS, PARAMS)
    for i in (1, 2, 3):
        name = f"stage1_block{i}"
        for module, leaf in (("conv1", "kernel"), ("conv1", "gain"), ("gate", "scale")):
            w, g = (np.asarray(t[name][module][leaf], np.float64) for t in (PARAMS, GRADIENTS))
            axes = (0, 1, 2) if leaf == "kernel" else None
            largest = 0.5 * np.maximum(np.sqrt((w**2).sum(axes)), 1e-3)
            size = np.sqrt((g**2).sum(axes))
            expected = g * np.minimum(1, largest / size)
            np.testing.assert_allclose(result[name][module][leaf], expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, result["head"], GRADIENTS["head"])


def test_adaptive_clipping_is_timms():
    agc = pytest.importorskip("timm.utils.agc")
    torch = pytest.importorskip("torch")
    w, g = (t["stage1_block2"]["conv1"]["kernel"] for t in (PARAMS, GRADIENTS))
    weight = torch.nn.Parameter(torch.from_numpy(w.transpose(3, 2, 0, 1).copy()))
    weight.grad = torch.from_numpy(g.transpose(3, 2, 0, 1).copy())
    agc.adaptive_clip_grad([weight], clip_factor=0.5)
    result = clip("agc", 0.5, GRADIENTS, PARAMS)["stage1_block2"]["conv1"]["kernel"]
    expected = weight.grad.numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_adaptive_clipping_treats_scanned_blocks_alike():
    expected = stack_params(clip("agc", 0.5, GRADIENTS, PARAMS))
    result = clip("agc", 0.5, stack_params(GRADIENTS), stack_params(PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, expected)


def test_small_gradients_are_not_clipped():
    small = jax.tree.map(lambda g: g * np.float32(1e-5), GRADIENTS)
    for mode in CLIPPINGS:
        jax.tree.map(np.testing.assert_array_equal, clip(mode, 0.5, small, PARAMS), small)


@pytest.mark.parametrize("mode", CLIPPINGS)
def test_optimizer_clips_before_its_step(mode):
    optimizer = make_optimizer("sgd", 1.0, momentum=0, grad_clip=0.5, grad_clip_mode=mode)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
    expected = clip(mode, 0.5, GRADIENTS, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-6), updates, expected)
    if mode == "value":
        assert max(float(jnp.abs(u).max()) for u in jax.tree.leaves(updates)) == 0.5


def test_unknown_mode_is_refused():
    with pytest.raises(UserError, match="unknown grad_clip_mode 'agcc'"):
        make_optimizer("sgd", 0.1, grad_clip=1.0, grad_clip_mode="agcc")
