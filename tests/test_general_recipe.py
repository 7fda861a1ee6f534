"""Tests of the recipe of runs without `--config`."""

import numpy as np
import pytest
from helpers.image_folders import write_folder

from resflax.cli.dataset_facts import DatasetFacts, dataset_facts
from resflax.cli.general_recipe import general_recipe
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


@pytest.mark.parametrize("examples", [60, 150, 500, 3_000])
def test_small_sets_get_300_to_2000_steps(examples):
    recipe = general_recipe(DatasetFacts(examples, None, 3))
    assert 300 <= recipe["epochs"] * examples / recipe["batch_size"] <= 2_000


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
