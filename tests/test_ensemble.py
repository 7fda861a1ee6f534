"""The same step under vmap trains an ensemble as if each member trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.fixture(scope="module")
def runs():
    """Losses of 20 steps of three members, vmapped and alone, and their first and last states."""
    digits = load_dataset("digits")
    mean, std = digits.train.mean_std()
    model, optimizer = create_model("cifar_resnet8"), make_optimizer("sgd", 0.02, weight_decay=1e-4)
    step = make_train_step(
        model,
        optimizer,
        augment=make_augment(pad_crop=1),
        normalize=lambda images: normalize(images, mean=mean, std=std),
    )
    alone = [create_state(model, optimizer, seed, (8, 8, 1)) for seed in SEEDS]
    together = stack_states(alone)
    first = (alone, together)
    vmapped, single = jax.jit(jax.vmap(step, in_axes=(0, None))), jax.jit(step)
    losses: dict[str, list] = {"together": [], "alone": []}
    for batch in train_batches(digits.train, seed=0, batch_size=64, start=0, stop=20):
        together, metrics = vmapped(together, batch)
        losses["together"].append(np.asarray(metrics["loss"]))
        alone, metrics = zip(*(single(state, batch) for state in alone), strict=True)
        losses["alone"].append(np.array([m["loss"] for m in metrics]))
    return losses, first, (alone, together)


def test_three_members_lose_what_three_runs_lose(runs):
    losses, _, _ = runs
    together, alone = np.array(losses["together"]), np.array(losses["alone"])
    assert together.shape == (20, 3)
    assert len(np.unique(together[-1])) == 3
    assert (alone[-1] < alone[0]).all()
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_members_first_parameters_are_those_of_its_seed_bit_for_bit(runs):
    _, (_, together), _ = runs
    model, optimizer = create_model("cifar_resnet8"), make_optimizer("sgd", 0.02)
    for k, seed in enumerate(SEEDS):
        expected = create_state(model, optimizer, seed, (8, 8, 1)).params
        member = unstack_states(together)[k].params
        jax.tree.map(np.testing.assert_array_equal, member, expected)


def test_stack_and_unstack_are_inverse():
    members = [{"a": jnp.full((2,), k), "b": jnp.int32(k)} for k in range(3)]
    for member, back in zip(members, unstack_states(stack_states(members)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, member, back)
