"""Synthetic datasets of noise."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run_train

from resflax import UserError
from resflax.data import load_dataset

ROOT = Path(__file__).parents[1]


def test_fake_dataset_has_the_sizes_in_its_name():
    data = load_dataset("fake:4x6x3:7:4000")
    assert data.train.images.shape == (4000, 4, 6, 3)
    assert data.test.images.shape == (500, 4, 6, 3)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int32
    assert data.num_classes == 7
    assert data.classes == tuple("0123456")
    assert set(data.train.labels.tolist()) == set(range(7))


def test_fake_pixels_are_uniform():
    """The mean of 288,000 draws is within five standard errors, and every value occurs."""
    pixels = load_dataset("fake:4x6x3:7:4000").train.images.ravel()
    deviation = np.sqrt((256**2 - 1) / 12)
    assert abs(pixels.mean() - 127.5) < 5 * deviation / np.sqrt(pixels.size)
    assert len(np.unique(pixels)) == 256


def test_fake_dataset_is_a_function_of_name_and_seed():
    one, again, other = (load_dataset("fake:4x4x1:2:64", seed=seed) for seed in (1, 1, 2))
    assert one.train.images.tobytes() == again.train.images.tobytes()
    assert one.test.labels.tobytes() == again.test.labels.tobytes()
    assert one.train.images.tobytes() != other.train.images.tobytes()
    assert one.train.images[:8].tobytes() != one.test.images.tobytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fake:", "expected fake:HEIGHTxWIDTHxCHANNELS:CLASSES:EXAMPLES"),
        ("fake:4x4:2:64", "does not specify noise"),
        ("fake:4x4x3:0:64", "with numbers from 1"),
        ("fake:4x4x3:2:-1", "does not specify noise"),
        ("fake:4x4x3:2:64:1", "does not specify noise"),
        ("fake:4096x4096x3:2:99999", "GiB of memory: expected at most 16"),
    ],
)
def test_fake_name_in_another_format_raises(name, message):
    with pytest.raises(UserError, match=message):
        load_dataset(name)


@pytest.mark.parametrize("name", ["fake:4x4x3:2:64", "digits"])
@pytest.mark.parametrize("keys", [{"image_size": 8}, {"channels": 3}])
def test_dataset_of_one_size_rejects_another_one(name, keys):
    with pytest.raises(UserError, match="has its own image size and channels"):
        load_dataset(name, **keys)


@pytest.mark.slow
def test_fake_recipe_reports_examples_per_second(tmp_path):
    """A small network and dataset in the recipe that measures speed at full size."""
    recipe = ROOT / "configs" / "imagenet_fake.py"
    small = [
        "--config.model=cifar_resnet8",
        "--config.spec.depths=(1,)",
        "--config.spec.widths=(4,)",
    ]
    small += ["--config.spec.stem_width=4", "--config.dataset=fake:8x8x3:10:128"]
    arguments = [f"--config={recipe}", *small, f"--workdir={tmp_path}/run"]
    assert run_train(*arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["examples_per_second"] > 0
    assert (results["train_examples"], results["test_examples"], results["steps"]) == (128, 16, 4)
