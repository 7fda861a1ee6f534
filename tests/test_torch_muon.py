"""The PyTorch peer of Muon, against resflax's optimizer and the singular vectors."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peers.torch_muon import Muon, orthogonalize  # noqa: E402
from resflax.train.optim import make_optimizer  # noqa: E402


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7)])
def test_orthogonalize_keeps_the_singular_vectors(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(torch.from_numpy(matrix)).numpy()
    values = left.T @ result @ right.T
    np.testing.assert_allclose(values - np.diag(np.diag(values)), 0, atol=1e-9)
    assert 0.6 < np.diag(values).min() < np.diag(values).max() < 1.3


def test_updates_equal_those_of_resflax():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 4, 6)).astype(np.float32)
    optimizer = make_optimizer("muon", lambda _: jnp.float32(0.02), weight_decay=0.01)
    params = {"stage1_block1": {"conv1": {"kernel": jnp.asarray(kernel)}}}
    state = optimizer.init(params)
    weight = torch.nn.Parameter(torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous())
    peer = Muon([weight], 0.02, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        gradient = rng.standard_normal((3, 3, 4, 6)).astype(np.float32)
        gradients = {"stage1_block1": {"conv1": {"kernel": jnp.asarray(gradient)}}}
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        weight.grad = torch.from_numpy(gradient).permute(3, 2, 0, 1).contiguous()
        peer.step()
        (expected,) = jax.tree.leaves(params)
        found = weight.detach().permute(2, 3, 1, 0).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(np.asarray(expected) - kernel).max() > 1e-2
