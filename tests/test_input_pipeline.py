"""Examples that lie on the devices are those that the host would send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resflax import UserError
from resflax.data import Dataset, InMemorySplit, StreamingSplit, train_batches
from resflax.train import default_config, make_engine
from resflax.train import input_pipeline as feeds
from resflax.train.input_pipeline import device_feed, fits_on_device, host_feed
from resflax.train.state import TrainState


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 3, 3, 1), np.uint8)
    return InMemorySplit(images, rng.integers(0, 9, 50).astype(np.int32))


def config(seed):
    config = default_config()
    config.seed, config.batch_size = seed, 16
    return config


def counted(state, batch):
    """A step that shows its batch."""
    return TrainState(state.step + 1, state.seed, {}, {}, {}), batch


def start(engine, step):
    return engine.replicate(TrainState(jnp.int32(step), jnp.uint32(0), {}, {}, {}))


def shown(engine, advance, first, steps):
    """What the devices saw, the parts of each batch in order."""
    state, seen = start(engine, first), []
    for _ in range(steps):
        state, batch = advance(state)
        whole = jax.tree.map(np.asarray, batch)
        if engine.axis_name:
            whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole)
        seen.append(whole)
    return seen


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
@pytest.mark.parametrize(("first", "ahead"), [(0, 64 * 2**20), (37, 5 * 64)])
def test_the_device_road_sees_what_the_host_road_sends(
    examples, parallel, devices, first, ahead, monkeypatch
):
    """From the start and from step 37; the order sent ahead for all steps, and for five."""
    monkeypatch.setattr(feeds, "ORDER", ahead)
    engine = make_engine(parallel, jax.devices()[:devices])
    roads = [
        shown(engine, feed(engine, counted, examples, config(5), first, first + 12), first, 12)
        for feed in (host_feed, device_feed)
    ]
    expected = train_batches(examples, seed=5, batch_size=16, start=first, stop=first + 12)
    for host, device, plain in zip(*roads, expected, strict=True):
        for key in ("image", "label", "index"):
            assert host[key].tobytes() == device[key].tobytes() == plain[key].tobytes()


def test_small_sets_lie_on_the_devices_and_others_do_not(examples, monkeypatch):
    data = Dataset("small", examples, examples, 9)
    assert fits_on_device("auto", data)
    assert fits_on_device("device", data)
    assert not fits_on_device("host", data)
    monkeypatch.setattr(feeds, "SMALL", examples.images.nbytes - 1)
    assert not fits_on_device("auto", data)
    stream = Dataset("stream", StreamingSplit(None, 8), StreamingSplit(None, 8), 9)
    assert not fits_on_device("auto", stream)
    with pytest.raises(UserError, match="'stream' is read as it is needed: expected 'host'"):
        fits_on_device("device", stream)
    with pytest.raises(UserError, match="unknown data.placement 'gpu'"):
        fits_on_device("gpu", data)
