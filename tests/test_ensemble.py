"""The same step under `vmap` trains an ensemble as if each member were trained separately."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.modules import LinearClassifier, random_batch

from resflax import create_model
from resflax.data import load_dataset, make_augment, normalize, train_batches
from resflax.train import (
    create_state,
    make_optimizer,
    make_train_step,
    stack_states,
    unstack_states,
)

SEEDS = (0, 1, 2)
MODEL, OPTIMIZER = create_model("cifar_resnet8"), make_optimizer("sgd", 0.02, weight_decay=1e-4)


@pytest.fixture(scope="module")
def runs():
    """Trains three members for 20 steps, vmapped and separately.

    Returns their losses by step and member, and the vmapped initial state.
    """
    digits = load_dataset("digits")
    mean, std = digits.train.mean_std()
    step = make_train_step(
        MODEL,
        OPTIMIZER,
        augment=make_augment(pad_crop=1),
        normalize=lambda images: normalize(images, mean=mean, std=std),
    )
    states = [create_state(MODEL, OPTIMIZER, seed, (8, 8, 1)) for seed in SEEDS]
    stacked = initial = stack_states(states)
    vmapped, single = jax.jit(jax.vmap(step, in_axes=(0, None))), jax.jit(step)
    losses: dict[str, list] = {"vmapped": [], "separate": []}
    for batch in train_batches(digits.train, seed=0, batch_size=64, start=0, stop=20):
        stacked, metrics = vmapped(stacked, batch)
        losses["vmapped"].append(np.asarray(metrics["loss"]))
        states, metrics = zip(*(single(state, batch) for state in states), strict=True)
        losses["separate"].append(np.array([m["loss"] for m in metrics]))
    return {key: np.array(values) for key, values in losses.items()}, initial


@pytest.mark.slow
def test_vmapped_members_have_the_losses_of_separate_runs(runs):
    losses, _ = runs
    vmapped, separate = losses["vmapped"], losses["separate"]
    assert vmapped.shape == (20, 3)
    assert len(np.unique(vmapped[-1])) == 3
    assert (separate[-1] < separate[0]).all()
    np.testing.assert_allclose(vmapped, separate, rtol=1e-5)


@pytest.mark.slow
def test_member_starts_from_its_seed_bit_for_bit(runs):
    _, initial = runs
    for k, seed in enumerate(SEEDS):
        expected = create_state(MODEL, OPTIMIZER, seed, (8, 8, 1)).params
        member = unstack_states(initial)[k].params
        jax.tree.map(np.testing.assert_array_equal, member, expected)


def test_stack_and_unstack_are_inverse():
    members = [{"a": jnp.full((2,), k), "b": jnp.int32(k)} for k in range(3)]
    for member, restored in zip(members, unstack_states(stack_states(members)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, member, restored)


@pytest.mark.slow
def test_vmapped_step_equals_the_step_of_each_member():
    """The fast form of the slow test above: softmax regression, one step."""
    optimizer, batch = make_optimizer("sgd", 0.1), random_batch()
    step = make_train_step(LinearClassifier(), optimizer)
    states = [create_state(LinearClassifier(), optimizer, seed, (2, 2, 1)) for seed in SEEDS]
    stacked, _ = jax.vmap(step, in_axes=(0, None))(stack_states(states), batch)
    for state, member in zip(states, unstack_states(stacked), strict=True):
        expected, _ = step(state, batch)
        for a, b in zip(*map(jax.tree.leaves, (member, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
