"""Tests of the recipe of runs without `--config`."""

import json

import numpy as np
import pytest
from helpers.image_folders import write_folder

from resflax.cli.dataset_facts import DatasetFacts, dataset_facts
from resflax.cli.general_recipe import general_recipe
from resflax.cli.main import main
from resflax.train import check_config, default_config

FACTS = [
    DatasetFacts(examples, size, classes)
    for examples in (1, 4, 60, 150, 700, 3_000, 15_000, 1_300_000)
    for size in (None, (8, 8), (32, 32))
    for classes in (2, 1_000)
]
GIVEN = [
    {},
    {"epochs": 1},
    {"data.image_size": 0},
    {"data.image_size": 32},
    {"optimizer": "adamw"},
    {"pretrained": "weights"},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_recipes_are_valid_and_leave_the_keys_given_alone(given):
    for facts in FACTS:
        changes = general_recipe(facts, given)
        assert not set(changes) & set(given)
        config = default_config()
        config.update_from_flattened_dict({"dataset": "folder:photos"} | changes | given)
        check_config(config)
        assert config.batch_size <= facts.examples


@pytest.mark.parametrize("examples", [40, 60, 105, 150, 500, 1_000, 3_000])
def test_small_sets_get_600_to_2000_steps(examples):
    recipe = general_recipe(DatasetFacts(examples, None, 3))
    assert 600 <= recipe["epochs"] * examples / recipe["batch_size"] <= 2_000


@pytest.mark.slow
def test_small_set_is_learned_from_scratch_without_a_recipe(tmp_path):
    """Squares of random size and brightness on gray; the class is their hue."""
    rng = np.random.default_rng(0)
    files = {}
    for split, count in (("train", 20), ("test", 20)):
        for channel, name in enumerate(("red", "green", "blue")):
            for i in range(count):
                image = np.full((16, 16, 3), rng.integers(0, 128), np.uint8)
                top, left, side = *rng.integers(0, 8, 2), rng.integers(5, 9)
                image[top : top + side, left : left + side] = 0
                image[top : top + side, left : left + side, channel] = rng.integers(160, 256)
                files[f"{split}/{name}/{i}.png"] = image
    dataset, run = write_folder(tmp_path / "data", files), tmp_path / "run"
    flags = [f"--config.dataset={dataset}", "--config.model=cifar_resnet8", f"--workdir={run}"]
    assert main(["train", *flags]) == 0
    assert json.loads((run / "results.json").read_text())["test_accuracy"] >= 0.9


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(20, 30), (20, 30)], (20, 30)),
        ([(20, 30), (30, 20)], None),
        ([(65, 64), (65, 64)], None),
    ],
)
def test_facts_of_a_folder_are_counts_and_the_common_size(tmp_path, sizes, expected):
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    files = {
        f"{split}/{name}/{i}.png": image
        for split in ("train", "test")
        for name in "abc"
        for i, image in enumerate(images)
    }
    config = default_config()
    config.dataset = write_folder(tmp_path, files)
    assert dataset_facts(config) == DatasetFacts(6, expected, 3)


def test_facts_of_noise_are_those_of_its_name():
    config = default_config()
    config.dataset = "fake:16x12x3:10:50"
    assert dataset_facts(config) == DatasetFacts(50, (16, 12), 10)
