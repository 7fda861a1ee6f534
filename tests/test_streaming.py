"""Splits read from disk on demand, and their data loader."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import write_folder
from PIL import Image

from resflax import UserError
from resflax.data import batch_indices, eval_batches, load_dataset, train_batches
from resflax.data.crops import crop_and_resize, inception_box
from resflax.train import dataset as train_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images of many sizes, some of them gray."""
    rng = np.random.default_rng(0)
    files = {}
    for i in range(40):
        shape = (*rng.integers(9, 40, 2), 3) if i % 5 else rng.integers(9, 40, 2)
        split = "test" if i % 4 == 3 else "train"
        kind = "ab"[(i if split == "train" else i // 4) % 2]
        files[f"{split}/{kind}/{i:02}.png"] = rng.integers(0, 256, shape, np.uint8)
    return write_folder(tmp_path_factory.mktemp("folder"), files)


def read_train_batches(folder, num_workers=0, start=0, stop=12, seed=3):
    split = load_dataset(folder, image_size=8, seed=seed).train
    return list(
        train_batches(
            split, seed=seed, batch_size=7, start=start, stop=stop, num_workers=num_workers
        )
    )


def assert_same_batches(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        assert all(left[key].tobytes() == right[key].tobytes() for key in left)


def test_train_batches_are_random_crops_by_seed_step_and_index(folder):
    split = load_dataset(folder, image_size=8, seed=3).train
    for step, batch in enumerate(read_train_batches(folder)):
        index = batch_indices(3, step, 7, len(split))
        np.testing.assert_array_equal(batch["index"], index)
        for i, image, label in zip(index, batch["image"], batch["label"], strict=True):
            pixels, expected = split.source.read(int(i), 3)
            box = inception_box(np.random.default_rng([3, step, i]), *pixels.shape[:2])
            np.testing.assert_array_equal(image, crop_and_resize(pixels, box, 8))
            assert label == expected


def test_train_batches_do_not_depend_on_the_start_step(folder):
    assert_same_batches(read_train_batches(folder)[5:], read_train_batches(folder, start=5))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_train_batches_do_not_depend_on_the_workers(folder):
    batches = read_train_batches(folder)
    assert_same_batches(batches, read_train_batches(folder, num_workers=1))
    assert_same_batches(batches[5:], read_train_batches(folder, num_workers=2, start=5))


def test_train_batches_differ_between_seeds(folder):
    a, b = read_train_batches(folder)[0], read_train_batches(folder, seed=4)[0]
    assert a["image"].tobytes() != b["image"].tobytes()


def test_eval_batches_hold_every_center_crop_once(folder):
    split = load_dataset(folder, image_size=8).test
    batches = list(eval_batches(split, batch_size=4))
    weight = np.concatenate([batch["weight"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])[weight == 1]
    assert len(images) == len(split) == 10
    for i, image in enumerate(images):
        pixels, _ = split.source.read(i, 3)
        # As torchvision: resize the shorter side to int(8 / 0.875), then crop the center.
        height, width = pixels.shape[:2]
        resized = Image.fromarray(pixels).resize(
            (int(width * 9 / min(height, width)), int(height * 9 / min(height, width))),
            Image.Resampling.BILINEAR,
        )
        left, top = round((resized.width - 8) / 2), round((resized.height - 8) / 2)
        expected = np.asarray(resized)[top : top + 8, left : left + 8]
        np.testing.assert_array_equal(image, expected)


def test_inception_boxes_have_the_ratios_and_areas_of_the_paper():
    rng = np.random.default_rng(0)
    boxes = np.array([inception_box(rng, 300, 400) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 400).all()
    assert (bottom <= 300).all()
    width, height = right - left, bottom - top
    assert (np.abs(np.log(width / height)) <= np.log(4 / 3) + 0.03).all()
    area = width * height / (300 * 400)
    assert area.min() > 0.079
    assert area.max() <= 1
    # The largest boxes do not fit into a wide image; below 0.5 the areas are uniform.
    small = area[area < 0.5]
    assert abs((small < 0.29).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(small))


def test_inception_box_of_a_thin_image_is_the_largest_allowed():
    rng = np.random.default_rng(0)
    boxes = {inception_box(rng, 1000, 10) for _ in range(20)}
    assert (0, 493, 10, 506) in boxes


def test_bad_image_is_replaced_and_does_not_count_in_evaluation(tmp_path):
    good = {f"{split}/{'ab'[i > 4]}/{i}.png": np.full((9, 9, 3), 10 * i, np.uint8)
            for split in ("train", "test") for i in range(6)}  # fmt: skip
    name = write_folder(tmp_path, good | {"train/a/2.png": b"", "test/a/4.png": b"garbage"})
    with pytest.raises(UserError, match="train/a/2.png: is empty.*on_bad_example=skip"):
        load_dataset(name, image_size=8).train.get_batch(np.arange(5))
    data = load_dataset(name, image_size=8, on_bad_example="skip")
    images, _ = data.train.get_batch(np.arange(5))
    assert images[:, 0, 0, 0].tolist() == [0, 10, 30, 30, 40]
    batches = list(eval_batches(data.test, batch_size=3))
    assert np.concatenate([batch["weight"] for batch in batches]).tolist() == [1, 1, 1, 1, 0, 1]
    assert len(data.skipped) == 2
    assert "train/a/2.png: is empty" in data.skipped[0]


def test_skipped_examples_of_all_processes_count_together(tmp_path, monkeypatch):
    files = {f"{split}/{kind}/{i:02}.png": np.zeros((9, 9, 3), np.uint8)
             for split in ("train", "test") for kind in "ab" for i in range(20)}  # fmt: skip
    name = write_folder(tmp_path, files | {"train/b/03.png": b""})
    data = load_dataset(name, image_size=8, on_bad_example="skip")
    data.train.get_batch(np.arange(20, 30))
    others = list[str]()  # rows of the other processes, of the training split
    monkeypatch.setattr(
        train_dataset, "all_gather_strings", lambda own: own + others if own else own
    )
    others.append(json.dumps([25, "25.png: is empty"]))
    own, *more = train_dataset.gather_skipped(data)
    assert "train/b/03.png: is empty" in own
    assert more == ["25.png: is empty"]
    others.append(json.dumps([36, "36.png: is empty"]))
    with pytest.raises(UserError, match="3 of 20 examples of class 'b' cannot be used"):
        train_dataset.gather_skipped(data)


KILLED = """
import sys
from resflax.data import load_dataset, train_batches
if __name__ == "__main__":
    split = load_dataset(sys.argv[1], image_size=8).train
    for batch in train_batches(
        split, seed=0, batch_size=4, start=0, stop=10**6, num_workers=1
    ):
        print("a batch", flush=True)
"""


def children(pid):
    """Returns the process ids of the children of all threads of a process."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in " ".join(lists).split()]


class StartedError(Exception):
    """Raised instead of starting worker processes."""


def test_workers_are_limited_by_cpu_cores_and_batches(folder, monkeypatch):
    """Each worker takes seconds to start, so that a typing error must not start thousands."""
    counts = []

    def record(num_workers, per_worker_buffer_size):
        counts.append(num_workers)
        raise StartedError

    monkeypatch.setattr("grain.MultiprocessingOptions", record)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    split = load_dataset(folder, image_size=8).train
    for asked, stop in ((3, 20), (300, 20), (300, 5), (0, 5)):
        batches = train_batches(split, seed=0, batch_size=4, start=0, stop=stop, num_workers=asked)
        with pytest.raises(StartedError):
            next(iter(batches))
    assert counts == [3, 8, 5, 0]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_exit_when_their_parent_is_killed(folder, tmp_path):
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
