"""Batches from a dataset on the devices are those that the host would send."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.counting_step import (
    collect_batches,
    collect_member_batches,
    counting_step,
    member_counting_step,
)
from PIL import Image

from resflax import UserError
from resflax.data import (
    Dataset,
    InMemorySplit,
    StreamingSplit,
    batch_indices,
    batch_repeats,
    load_dataset,
    train_batches,
)
from resflax.distributed import EnsembleEngine
from resflax.train import default_config, input_pipeline, make_engine
from resflax.train.input_pipeline import (
    batch_seeds,
    fits_on_device,
    limit_in_flight,
    make_device_step_fn,
    make_host_step_fn,
    train_iterator,
)


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 3, 3, 1), np.uint8)
    return InMemorySplit(images, rng.integers(0, 9, 50).astype(np.int32))


def make_config(ensemble=None, **keys):
    config = default_config()
    config.seed, config.batch_size = 5, 16
    config.data.update(keys)
    config.ensemble.update(ensemble or {})
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


@pytest.mark.parametrize("make", [make_host_step_fn, make_device_step_fn])
@pytest.mark.parametrize("member_devices", [1, 4])
def test_each_member_gets_the_batches_of_its_own_seed(split, make, member_devices, monkeypatch):
    """The example indices of two steps of four members are sent at once."""
    monkeypatch.setattr(input_pipeline, "INDEX_BUFFER_BYTES", 2 * 4 * 16 * 4)
    engine = EnsembleEngine(jax.devices()[:4], 4, member_devices=member_devices)
    config = make_config({"size": 4, "seeds": (3, 0, 2**32 - 1, 0)}, alternating_flip=True)
    step_fn = make(engine, member_counting_step(engine), split, config, 2, 8)
    batches = collect_member_batches(engine, step_fn, 2, 6)
    for member, seed in enumerate(config.ensemble.seeds):
        expected = train_batches(split, seed=seed, batch_size=16, start=2, stop=8)
        for step, (batch, alone) in enumerate(zip(batches, expected, strict=True), start=2):
            for key in ("image", "label", "index"):
                assert batch[key][member].tobytes() == alone[key].tobytes()
            epochs = np.arange(step * 16, (step + 1) * 16) // 50
            np.testing.assert_array_equal(batch["epoch"][member], epochs)


@pytest.mark.parametrize("make", [make_host_step_fn, make_device_step_fn])
def test_members_share_the_order_of_the_first(split, make):
    engine = EnsembleEngine(jax.devices()[:4], 2)
    config = make_config({"size": 2, "seeds": (7, 1), "share_order": True})
    step_fn = make(engine, member_counting_step(engine), split, config, 0, 3)
    batches = collect_member_batches(engine, step_fn, 0, 3)
    expected = train_batches(split, seed=7, batch_size=16, start=0, stop=3)
    for batch, first in zip(batches, expected, strict=True):
        for key in ("image", "label", "index"):
            assert batch[key].tobytes() == 2 * first[key].tobytes()


@pytest.mark.parametrize(
    ("shared", "orders", "crops"),
    [
        ({}, (3, 4), (3, 4)),
        ({"share_order": True}, (3, 3), (3, 4)),
        ({"share_augment": True}, (3, 4), (3, 3)),
        ({"share_order": True, "share_augment": True}, (3,), (3,)),
    ],
)
def test_crops_of_a_member_have_the_seed_of_its_augmentation(shared, orders, crops):
    config, streamed = make_config({"size": 2, **shared}), StreamingSplit(None, 8, seed=9)
    config.seed = 3
    seeds = batch_seeds(streamed, config)
    assert seeds == tuple(zip(orders, crops, strict=True))
    without_crops = batch_seeds(StreamingSplit(None, 8), config)
    assert without_crops == tuple((order, None) for order in dict.fromkeys(orders))
    config.ensemble.size = 1
    assert batch_seeds(streamed, config) == ((3, 9),)


def test_streamed_members_have_the_images_of_separate_runs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / ("train" if i % 2 else "test") / "ab"[i // 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8)).save(path)
    train, config = load_dataset(f"folder:{tmp_path}", image_size=8, seed=9).train, make_config()
    config.batch_size = 4
    engine, one = EnsembleEngine(jax.devices()[:2], 2), make_engine("mesh", jax.devices()[:1])
    config.ensemble.update({"size": 2, "seeds": (3, 1)})
    batches = list(train_iterator(engine, train, config, 1, 3))
    for member, seed in enumerate((3, 1)):
        alone = make_config()
        alone.seed, alone.batch_size = seed, 4
        split = dataclasses.replace(train, seed=seed)
        for batch, expected in zip(batches, train_iterator(one, split, alone, 1, 3), strict=True):
            for key, value in expected.items():
                assert np.asarray(batch[key])[member].tobytes() == np.asarray(value).tobytes()


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


@pytest.mark.parametrize("make", [make_host_step_fn, make_device_step_fn])
def test_repeats_add_the_copy_of_each_example(split, make):
    engine, config = make_engine("pmap"), make_config(repeats=2)
    config.batch_size = 8
    step_fn = make(engine, counting_step, split, config, 1, 4)
    batches = collect_batches(engine, step_fn, 1, 3)
    for step, batch in zip(range(1, 4), batches, strict=True):
        index = batch_indices(5, step, 8, 50, 2)
        np.testing.assert_array_equal(batch["index"], index)
        np.testing.assert_array_equal(batch["repeat"], batch_repeats(step, 8, 50, 2))
        np.testing.assert_array_equal(batch["label"], split.labels[index])


def test_copies_of_a_streamed_example_have_crops_of_their_own(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / name)
    split = load_dataset(f"folder:{tmp_path}", image_size=8, seed=3).train
    batches = [
        next(train_batches(split, seed=0, batch_size=4, start=2, stop=3, repeats=repeats))
        for repeats in (1, 2)
    ]
    once, twice = (batch["image"] for batch in batches)
    np.testing.assert_array_equal(twice[0], split.example(int(batches[1]["index"][0]), 2)[0])
    rows = {index: np.flatnonzero(batches[1]["index"] == index) for index in (0, 1)}
    assert batches[1]["repeat"].tolist() == [0, 0, 1, 1]
    for first, second in rows.values():
        assert (twice[first] != twice[second]).any()
    assert len(once) == len(twice) == 4
