"""Example order, and the batches of splits in memory."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from resflax.data import (
    EvalOrder,
    InMemorySplit,
    TrainOrder,
    batch_epochs,
    batch_indices,
    batch_repeats,
    eval_batches,
    train_batches,
)


def numbered_split(n):
    """A split in which example i is an image filled with i, with label i."""
    numbers = np.arange(n, dtype=np.uint8)
    return InMemorySplit(
        np.broadcast_to(numbers[:, None, None, None], (n, 2, 2, 1)), numbers.astype(np.int32)
    )


sizes = st.integers(1, 40)


@given(
    seed=st.integers(0, 2**32 - 1), size=sizes, batch=st.integers(1, 50), epochs=st.integers(1, 3)
)
def test_batch_indices_cover_each_epoch_once(seed, size, batch, epochs):
    steps = -(-epochs * size // batch)
    indices = np.concatenate([batch_indices(seed, s, batch, size) for s in range(steps)])
    for epoch in range(epochs):
        assert sorted(indices[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(size=sizes, batch=st.integers(1, 50), steps=st.integers(1, 20))
def test_batch_epochs_count_earlier_uses_of_each_example(size, batch, steps):
    uses = np.zeros(size, int)
    for step in range(steps):
        index, epochs = batch_indices(0, step, batch, size), batch_epochs(step, batch, size)
        assert epochs.dtype == np.int32
        for i, epoch in zip(index, epochs, strict=True):
            assert uses[i] == epoch
            uses[i] += 1


@given(
    seed=st.integers(0, 2**32 - 1), size=sizes, batch=st.integers(1, 40), start=st.integers(0, 30)
)
def test_train_batches_do_not_depend_on_the_start_step(seed, size, batch, start):
    options = {"seed": seed, "batch_size": batch, "stop": start + 2}
    expected = list(train_batches(numbered_split(size), start=0, **options))[start:]
    resumed = train_batches(numbered_split(size), start=start, **options)
    for a, b in zip(expected, resumed, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
        np.testing.assert_array_equal(a["label"], a["index"])
        np.testing.assert_array_equal(a["image"][:, 0, 0, 0], a["index"])


def test_batch_indices_differ_between_epochs_and_seeds():
    first, second = (batch_indices(0, step, 100, 100) for step in (0, 1))
    other_seed = batch_indices(1, 0, 100, 100)
    assert (first != second).any()
    assert (first != other_seed).any()


@given(size=sizes, batch=st.integers(1, 50))
def test_eval_batches_weigh_every_example_once(size, batch):
    weights = np.zeros(size)
    for part in eval_batches(numbered_split(size), batch_size=batch):
        assert part["image"].shape == (batch, 2, 2, 1)
        np.add.at(weights, part["label"], part["weight"])
    np.testing.assert_array_equal(weights, np.ones(size))


@given(size=sizes, batch=st.integers(1, 6), processes=st.integers(1, 4))
def test_local_rows_of_all_processes_form_the_batch(size, batch, processes):
    def orders(rows):
        return TrainOrder(5, batch * processes, size, 2, 6, rows), EvalOrder(
            batch * processes, size, rows
        )

    whole = orders(slice(None))
    parts = [orders(slice(i * batch, (i + 1) * batch)) for i in range(processes)]
    for order, local_orders in zip(whole, zip(*parts, strict=True), strict=True):
        for position in range(len(order)):
            plan = order.batch(position)
            local = [part.batch(position) for part in local_orders]
            np.testing.assert_array_equal(plan.index, np.concatenate([p.index for p in local]))
            np.testing.assert_array_equal(plan.weight, np.concatenate([p.weight for p in local]))
            assert {plan.step} == {p.step for p in local}


@given(size=st.integers(1, 40), batch=st.integers(1, 12), repeats=st.integers(1, 4))
def test_repeats_give_each_copy_of_the_first_examples(size, batch, repeats):
    """Over an epoch: the permutation of `batch_indices` without repeats, `repeats` times each."""
    steps = -(-size // batch)
    pairs = [
        (step * batch, batch_indices(7, step, batch, size, repeats),
         batch_repeats(step, batch, size, repeats))
        for step in range(steps)
    ]  # fmt: skip
    epoch = np.concatenate([batch_indices(7, step, batch, size) for step in range(steps)])[:size]
    expected = np.repeat(epoch, repeats)[:size]
    copies = np.tile(np.arange(repeats), size)[:size]
    for first, index, copy in pairs:
        assert (np.diff(copy) >= 0).all()  # the first copies, then the second ones
        if first + batch <= size:
            rows = slice(first, first + batch)
            assert sorted(zip(index, copy, strict=True)) == sorted(
                zip(expected[rows], copies[rows], strict=True)
            )


def test_copies_of_an_example_are_not_mixed_with_each_other():
    for step in range(8):
        index = batch_indices(0, step, 24, 100, 3)
        assert (index[::2] != index[1::2]).all()
