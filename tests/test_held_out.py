"""The held-out share of the training split: stratified, and the same in training and evaluation."""

import numpy as np
import pytest
from helpers.image_folders import constant_image, write_folder

from resflax import UserError
from resflax.data import load_dataset, load_split
from resflax.data.held_out import hold_out, split_labels
from resflax.train.config import default_config
from resflax.train.dataset import build_dataset


def config_of(**values):
    config = default_config()
    config.unlock()
    for key, value in values.items():
        if key in ("dataset", "seed"):
            config[key] = value
        else:
            config.data[key] = value
    return config


def test_held_out_share_of_each_class_is_equal():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 20, 10]))
    train, held_out = split_labels(labels, 0.1, seed=3)
    assert np.bincount(labels[held_out]).tolist() == [4, 2, 1]
    assert sorted([*train, *held_out]) == list(range(70))


def test_larger_share_contains_the_smaller_one():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    small, large = (split_labels(labels, share, seed=0).held_out for share in (0.1, 0.3))
    assert set(small) < set(large)
    assert set(small) != set(split_labels(labels, 0.1, seed=1).held_out)


def test_minimum_holds_out_of_small_classes_too():
    labels = np.repeat([0, 1, 2], [4, 30, 1])
    held_out = split_labels(labels, 0.1, seed=0, minimum=1).held_out
    assert np.bincount(labels[held_out]).tolist() == [1, 3]


def test_one_example_of_each_class_remains():
    assert split_labels(np.array([0, 1, 1]), 0.99, seed=0).train.tolist() == [0, 2]


@pytest.mark.parametrize("size", [0, 16], ids=["in memory", "streamed"])
def test_training_and_held_out_images_are_disjoint_and_complete(size, tmp_path):
    files = {f"train/{'ab'[i % 2]}/{i}.png": constant_image(i, 16, 16) for i in range(20)}
    tests = {f"test/{name}/30.png": constant_image(30, 16, 16) for name in "ab"}
    folder = write_folder(tmp_path, files | tests)
    config = config_of(dataset=folder, validation=0.2, image_size=size)
    train = build_dataset(config).train
    trained = {int(train.get_batch(np.array([i]))[0][0, 0, 0, 0]) for i in range(len(train))}
    source = hold_out(load_split(folder, "train"), 0.2, 0).held_out
    held_out = {int(source.read(i)[0][0, 0, 0]) for i in range(len(source))}
    assert (len(trained), len(held_out)) == (16, 4)
    assert trained | held_out == set(range(20))
    assert {value % 2 for value in held_out} == {0, 1}
    assert train.fingerprint()["per_class"] == [8, 8]


def test_runs_with_different_seeds_hold_out_the_same_examples():
    whole = load_dataset("digits").train
    first, second = (build_dataset(config_of(validation=0.1, seed=seed)).train for seed in (0, 7))
    np.testing.assert_array_equal(first.images, second.images)
    source = hold_out(load_split("digits", "train"), 0.1, 0).held_out
    assert len(first) + len(source) == len(whole)


def test_share_that_holds_out_nothing_is_an_error():
    with pytest.raises(UserError, match="config.data.validation is 0.0001, which holds out none"):
        build_dataset(config_of(validation=0.0001))
