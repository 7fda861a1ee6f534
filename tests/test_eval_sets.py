"""Further datasets that a run evaluates at the same steps, recorded under their names."""

import numpy as np
import pytest
from helpers.image_folders import constant_image, write_folder
from helpers.modules import NormNet
from helpers.records import read_records, read_reproducible

from resflax import UserError
from resflax.run.signals import Interrupt, InterruptedRunError
from resflax.train import Trainer, Workdir, build, check_config, default_config, loop
from resflax.train.config import to_json_dict
from resflax.train.dataset import build_dataset
from resflax.train.results import MEASURED

STEPS, BATCHES = 12, 3  # of one epoch of digits, and of its test split


def make_config(**keys):
    config = default_config()
    config.update_from_flattened_dict({"epochs": 1, "eval_sets": "again=digits", **keys})
    return config


@pytest.fixture(scope="module")
def trainer():
    return Trainer(build(make_config(), model=NormNet()))


class StopAfter(Interrupt):
    """Becomes SIGTERM when it has been asked `calls` times."""

    def __init__(self, calls):
        self.calls = calls

    @property
    def received(self):
        self.calls -= 1
        return 15 * (self.calls < 0)


def fit(trainer, path, interrupt=None):
    with Workdir.open(path, to_json_dict(trainer.config)) as workdir:
        return loop.fit(trainer, workdir, interrupt=interrupt)


def reproducible(values):
    return {key: value for key, value in values.items() if key not in MEASURED}


def test_set_is_recorded_with_each_evaluation_and_in_the_results(trainer, tmp_path):
    """The set is the test split itself, so that its metrics are known."""
    results = fit(trainer, tmp_path / "whole")
    test, again = (read_records(tmp_path / "whole", split) for split in ("test", "again"))
    assert [record["step"] for record in test] == [STEPS]
    strip = [[reproducible(r) | {"split": ""} for r in records] for records in (test, again)]
    assert strip[0] == strip[1]
    assert results["eval_sets"] == {
        "again": {
            "accuracy": results["test_accuracy"],
            "loss": results["test_loss"],
            "examples": results["test_examples"],
        }
    }
    # A run that stops between two batches of the set repeats it, and nothing else.
    with pytest.raises(InterruptedRunError):
        fit(trainer, tmp_path / "stopped", StopAfter(STEPS + 2 * BATCHES - 2))
    assert [r["split"] for r in read_records(tmp_path / "stopped")][-1] == "test"
    assert reproducible(fit(trainer, tmp_path / "stopped")) == reproducible(results)
    assert read_reproducible(tmp_path / "stopped") == read_reproducible(tmp_path / "whole")


def test_streamed_set_is_read_like_the_test_split(tmp_path):
    folders = [
        write_folder(
            tmp_path / name,
            {f"{s}/{c}/0.png": constant_image(value + len(c), 9, 14) for s in ("train", "test")
             for c in ("a", "bb")},
        )
        for name, value in (("first", 10), ("other", 90))
    ]  # fmt: skip
    keys = {"dataset": folders[0], "data.image_size": 8, "eval_sets": f"far={folders[1]}"}
    dataset = build_dataset(make_config(**keys))
    assert list(dataset.splits) == ["train", "test", "far"]
    images, labels = dataset.eval_sets["far"].get_batch(np.array([0, 1]))
    assert images.shape == (2, 8, 8, 3)
    assert labels.tolist() == [0, 1]
    assert images[:, 0, 0, 0].tolist() == [91, 92]
    assert dataset.eval_sets["far"].transform == dataset.test.transform


def test_set_with_other_classes_is_one_line(tmp_path):
    files = {f"{s}/{c}/0.png": constant_image(9, 8, 8) for s in ("train", "test") for c in "ab"}
    folder = write_folder(tmp_path, files)
    with pytest.raises(
        UserError, match=r"eval_sets: 'x' has other classes than 'digits' \('a', 'b'"
    ):
        build_dataset(make_config(eval_sets=[f"x={folder}"]))


@pytest.mark.parametrize(
    "value",
    ["digits", "=digits", "a=", "test=digits", "a=digits,a=fake", "1=digits", ["a"]],
    ids=str,
)
def test_invalid_sets_are_one_line(value):
    with pytest.raises(UserError, match=r"config.eval_sets has '.*': expected NAME=DATASET") as e:
        check_config(make_config(eval_sets=value))
    assert "\n" not in str(e.value)


def test_sets_with_a_given_dataset_are_refused():
    dataset = build_dataset(make_config(eval_sets=None))
    with pytest.raises(
        UserError, match="config.eval_sets is 'again=digits', but a dataset is given"
    ):
        build(make_config(), model=NormNet(), dataset=dataset)
