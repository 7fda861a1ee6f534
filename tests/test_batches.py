import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from resflax.data import InMemorySplit, batch_indices, eval_batches, train_batches


def examples(n):
    """Example i is an image full of i, with label i."""
    numbers = np.arange(n, dtype=np.uint8)
    return InMemorySplit(
        np.broadcast_to(numbers[:, None, None, None], (n, 2, 2, 1)), numbers.astype(np.int32)
    )


sizes = st.integers(1, 40)


@given(
    seed=st.integers(0, 2**32 - 1), size=sizes, batch=st.integers(1, 50), epochs=st.integers(1, 3)
)
def test_every_example_once_an_epoch_and_none_dropped(seed, size, batch, epochs):
    steps = -(-epochs * size // batch)
    row = np.concatenate([batch_indices(seed, s, batch, size) for s in range(steps)])
    for epoch in range(epochs):
        assert sorted(row[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(
    seed=st.integers(0, 2**32 - 1), size=sizes, batch=st.integers(1, 40), start=st.integers(0, 30)
)
def test_a_batch_does_not_depend_on_where_the_run_started(seed, size, batch, start):
    options = {"seed": seed, "batch_size": batch, "stop": start + 2}
    from_zero = list(train_batches(examples(size), start=0, **options))[start:]
    for a, b in zip(from_zero, train_batches(examples(size), start=start, **options), strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
        np.testing.assert_array_equal(a["label"], a["index"])
        np.testing.assert_array_equal(a["image"][:, 0, 0, 0], a["index"])


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = (batch_indices(0, step, 100, 100) for step in (0, 1))
    other = batch_indices(1, 0, 100, 100)
    assert (first != second).any()
    assert (first != other).any()


@given(size=sizes, batch=st.integers(1, 50))
def test_evaluation_weighs_every_example_once(size, batch):
    weights = np.zeros(size)
    for part in eval_batches(examples(size), batch_size=batch):
        assert part["image"].shape == (batch, 2, 2, 1)
        np.add.at(weights, part["label"], part["weight"])
    np.testing.assert_array_equal(weights, np.ones(size))
