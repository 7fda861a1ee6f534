import jax
import numpy as np
import optax
import pytest

from resflax import UserError, create_model
from resflax.train import checkpoint, create_state, make_optimizer, make_train_step


def test_a_state_comes_back_bit_for_bit(tmp_path):
    model = create_model("cifar_resnet8")
    optimizer = make_optimizer(
        "sgd", optax.constant_schedule(0.1), weight_decay=1e-4, clip_norm=1.0
    )
    state = create_state(model, optimizer, 7, (8, 8, 1))
    batch = {
        "image": np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype(np.float32),
        "label": np.arange(4),
    }
    state, _ = jax.jit(make_train_step(model, optimizer))(state, batch)
    checkpoint.save(tmp_path / "checkpoints", state)
    back = checkpoint.restore(
        tmp_path / "checkpoints", create_state(model, optimizer, 0, (8, 8, 1))
    )
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert int(back.seed) == 7


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    state = create_state(create_model("cifar_resnet8"), optax.sgd(0.1), 0, (8, 8, 1))
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no checkpoint"):
            checkpoint.restore(folder, state)
