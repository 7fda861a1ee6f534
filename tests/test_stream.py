"""Images of any size, cut to one as they are needed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_folder import write

from resflax import UserError
from resflax.data import batch_indices, load_dataset, stream_eval_batches, stream_train_batches
from resflax.data.crops import centre_box, inception_box, resized


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images of many sizes, grey ones among them."""
    rng = np.random.default_rng(0)
    files = {}
    for i in range(40):
        shape = (*rng.integers(9, 40, 2), 3) if i % 5 else rng.integers(9, 40, 2)
        split = "test" if i % 4 == 3 else "train"
        kind = "ab"[(i if split == "train" else i // 4) % 2]
        files[f"{split}/{kind}/{i:02}.png"] = rng.integers(0, 256, shape, np.uint8)
    return write(tmp_path_factory.mktemp("folder"), files)


def train(folder, workers=0, start=0, stop=12, seed=3):
    stream = load_dataset(folder, image_size=8, seed=seed).train
    return list(
        stream_train_batches(
            stream, seed=seed, batch_size=7, start=start, stop=stop, workers=workers
        )
    )


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        assert all(left[key].tobytes() == right[key].tobytes() for key in left)


def test_a_batch_is_what_its_seed_step_and_examples_say(folder):
    stream = load_dataset(folder, image_size=8, seed=3).train
    for step, batch in enumerate(train(folder)):
        index = batch_indices(3, step, 7, len(stream))
        np.testing.assert_array_equal(batch["index"], index)
        for i, image, label in zip(index, batch["image"], batch["label"], strict=True):
            pixels, expected = stream.source.read(int(i), 3)
            box = inception_box(np.random.default_rng([3, step, i]), *pixels.shape[:2])
            np.testing.assert_array_equal(image, resized(pixels, box, 8))
            assert label == expected


def test_a_run_may_start_at_any_step(folder):
    same(train(folder)[5:], train(folder, start=5))


def test_workers_change_nothing(folder):
    whole = train(folder)
    same(whole, train(folder, workers=1))
    same(whole[5:], train(folder, workers=2, start=5))


def test_the_seed_changes_what_is_seen(folder):
    a, b = train(folder)[0], train(folder, seed=4)[0]
    assert a["image"].tobytes() != b["image"].tobytes()


def test_evaluation_sees_every_example_once_at_its_centre(folder):
    stream = load_dataset(folder, image_size=8).test
    batches = list(stream_eval_batches(stream, batch_size=4, workers=0))
    weight = np.concatenate([batch["weight"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])[weight == 1]
    assert len(images) == len(stream) == 10
    for i, image in enumerate(images):
        pixels, _ = stream.source.read(i, 3)
        np.testing.assert_array_equal(image, resized(pixels, centre_box(*pixels.shape[:2]), 8))


def test_inception_boxes_lie_inside_and_have_the_ratios_and_areas_of_the_paper():
    rng = np.random.default_rng(0)
    boxes = np.array([inception_box(rng, 300, 400) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 400).all()
    assert (bottom <= 300).all()
    width, height = right - left, bottom - top
    assert (np.abs(np.log(width / height)) <= np.log(4 / 3) + 0.03).all()
    share = width * height / (300 * 400)
    assert share.min() > 0.079
    assert share.max() <= 1
    # A wide image leaves no room for the largest: of the rest the areas are uniform.
    small = share[share < 0.5]
    assert abs((small < 0.29).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(small))


def test_a_thin_image_is_cut_as_wide_as_the_ratio_allows():
    rng = np.random.default_rng(0)
    boxes = {inception_box(rng, 1000, 10) for _ in range(20)}
    assert (0, 493, 10, 506) in boxes


def test_a_bad_image_gives_way_to_the_next_and_counts_once_in_evaluation(tmp_path):
    good = {f"{split}/a/{i}.png": np.full((9, 9, 3), 10 * i, np.uint8)
            for split in ("train", "test") for i in range(5)}  # fmt: skip
    name = write(tmp_path, good | {"train/a/2.png": b"", "test/a/4.png": b"garbage"})
    with pytest.raises(UserError, match="train/a/2.png: is empty.*on_bad_example=skip"):
        load_dataset(name, image_size=8).train.get_batch(np.arange(5))
    data = load_dataset(name, image_size=8, on_bad_example="skip")
    images, _ = data.train.get_batch(np.arange(5))
    assert images[:, 0, 0, 0].tolist() == [0, 10, 30, 30, 40]
    batches = list(stream_eval_batches(data.test, batch_size=3, workers=0))
    assert np.concatenate([batch["weight"] for batch in batches]).tolist() == [1, 1, 1, 1, 0, 0]
    assert len(data.skipped) == 2
    assert "train/a/2.png: is empty" in data.skipped[0]


KILLED = """
import sys
from resflax.data import load_dataset, stream_train_batches
if __name__ == "__main__":
    stream = load_dataset(sys.argv[1], image_size=8).train
    for batch in stream_train_batches(
        stream, seed=0, batch_size=4, start=0, stop=10**6, workers=1
    ):
        print("a batch", flush=True)
"""


def children(pid):
    """Of any of its threads."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in " ".join(lists).split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_parent_that_was_killed(folder, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"a batch\n"
        workers = children(process.pid)
        assert workers
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
