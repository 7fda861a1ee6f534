"""The compiled step of an ensemble communicates only where the batch is split."""

import re
from collections import Counter

import jax
import numpy as np
import pytest

from resflax import create_model
from resflax.distributed import EnsembleEngine
from resflax.train import create_state, make_optimizer, make_train_step, stack_states

SIZE, OPTIMIZER = 4, make_optimizer("sgd", 0.1, weight_decay=1e-4)
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-[a-z]+|reduce-scatter)(?:-start)?\("
)
# Less time in LLVM; the program that is checked is the same.
FAST = {"xla_backend_optimization_level": "0"}


def shaped(tree, sharding, leading=()):
    """Returns shapes and dtypes of a tree's arrays, with leading axes and a sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=sharding), tree
    )


def collectives(model, member_devices):
    """Counts the collectives of a training step on four devices, with own batches of 8 images."""
    engine = EnsembleEngine(jax.devices()[:4], SIZE, member_devices=member_devices)
    model = create_model(model)
    state = jax.eval_shape(
        lambda: stack_states([create_state(model, OPTIMIZER, 0, (8, 8, 3))] * SIZE)
    )
    batch = {"image": np.zeros((SIZE, 8, 8, 8, 3), np.uint8),
             "label": np.zeros((SIZE, 8), np.int32)}  # fmt: skip
    batch = engine.shard_member_batch(batch)
    step = make_train_step(
        model,
        OPTIMIZER,
        normalize=lambda images: images.astype(np.float32) / np.float32(255),
        axis_name=engine.axis_name,
    )
    lowered = engine.compile_train(step).lower(shaped(state, engine.state_sharding), batch)
    return Counter(COLLECTIVE.findall(lowered.compile(FAST).as_text()))


@pytest.mark.slow
def test_members_on_separate_devices_need_no_collective():
    assert collectives("cifar_resnet20", 4) == {}


@pytest.mark.slow
@pytest.mark.parametrize("member_devices", [1, 2])
def test_split_batches_need_all_reduces_only(member_devices):
    assert set(collectives("cifar_resnet8", member_devices)) == {"all-reduce"}
