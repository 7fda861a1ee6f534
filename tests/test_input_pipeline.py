"""Batches from a dataset on the devices are those that the host would send."""

import jax
import numpy as np
import pytest
from helpers.counting_step import collect_batches, counting_step

from resflax import UserError
from resflax.data import Dataset, InMemorySplit, StreamingSplit, train_batches
from resflax.train import default_config, input_pipeline, make_engine
from resflax.train.input_pipeline import (
    fits_on_device,
    limit_in_flight,
    make_device_step_fn,
    make_host_step_fn,
)


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 3, 3, 1), np.uint8)
    return InMemorySplit(images, rng.integers(0, 9, 50).astype(np.int32))


def make_config(**keys):
    config = default_config()
    config.seed, config.batch_size = 5, 16
    config.data.update(keys)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
@pytest.mark.parametrize(("start", "buffer_bytes"), [(0, 64 * 2**20), (37, 5 * 64)])
def test_device_and_host_step_fns_deliver_the_same_batches(
    split, parallel, devices, start, buffer_bytes, monkeypatch
):
    """Starts at steps 0 and 37; sends the example indices of all 12 steps at once, and of 5."""
    monkeypatch.setattr(input_pipeline, "INDEX_BUFFER_BYTES", buffer_bytes)
    engine = make_engine(parallel, jax.devices()[:devices])
    stop, config = start + 12, make_config()
    host, device = (
        collect_batches(engine, make(engine, counting_step, split, config, start, stop), start, 12)
        for make in (make_host_step_fn, make_device_step_fn)
    )
    expected = train_batches(split, seed=5, batch_size=16, start=start, stop=stop)
    for host_batch, device_batch, batch in zip(host, device, expected, strict=True):
        for key in ("image", "label", "index"):
            assert host_batch[key].tobytes() == device_batch[key].tobytes() == batch[key].tobytes()


@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
@pytest.mark.parametrize("make", [make_host_step_fn, make_device_step_fn])
def test_alternating_flip_adds_the_epoch_of_each_example(split, parallel, make):
    """Batches of 16 of 50 examples: steps 3 and 6 contain the end of an epoch."""
    engine = make_engine(parallel)
    step_fn = make(engine, counting_step, split, make_config(alternating_flip=True), 2, 8)
    epochs = np.concatenate([b["epoch"] for b in collect_batches(engine, step_fn, 2, 6)])
    np.testing.assert_array_equal(epochs, np.arange(2 * 16, 8 * 16) // 50)
    assert epochs.dtype == np.int32


def test_small_in_memory_datasets_fit_on_device(split, monkeypatch):
    dataset = Dataset("small", split, split, 9)
    assert fits_on_device("auto", dataset)
    assert fits_on_device("device", dataset)
    assert not fits_on_device("host", dataset)
    monkeypatch.setattr(input_pipeline, "MAX_DEVICE_DATASET_BYTES", split.images.nbytes - 1)
    assert not fits_on_device("auto", dataset)
    assert fits_on_device("device", dataset)
    stream = Dataset("stream", StreamingSplit(None, 8), StreamingSplit(None, 8), 9)
    assert not fits_on_device("auto", stream)
    with pytest.raises(UserError, match="'stream' is streamed from disk: expected 'host' or"):
        fits_on_device("device", stream)


def test_limit_in_flight_waits_for_all_but_two_results(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    for count in range(1, 6):
        limit_in_flight(list(range(count)))
    assert waited == [0, 1, 2]
