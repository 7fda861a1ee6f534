"""The recipe of a run without `--config`, from a few facts about its dataset."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from resflax.cli.dataset_facts import DatasetFacts

# Side of images that are not kept in memory, by the model's stem: "cifar" keeps the resolution.
CIFAR_SIZE, IMAGENET_SIZE = 64, 224


class Row(NamedTuple):
    """A row of `BUCKETS`: values for training sets of at most `examples` images."""

    examples: float
    batch_size: int
    epochs: int
    learning_rate: float  # of SGD


# From scratch, a network needs about a thousand steps, however few the images are. Small batches
# make these cheap.
BUCKETS = (
    Row(50, 8, 200, 0.05),
    Row(100, 8, 100, 0.05),
    Row(150, 8, 72, 0.05),
    Row(300, 8, 40, 0.05),
    Row(600, 16, 40, 0.05),
    Row(1_500, 32, 40, 0.1),
    Row(5_000, 64, 40, 0.1),
    Row(20_000, 128, 40, 0.1),
    Row(float("inf"), 128, 90, 0.1),
)
# Larger sets get Inception crops. These can cut off what an image shows, and few images then teach
# a network too little.
MAX_SQUASHED = 5_000
WARMUP_SHARE = 0.05  # of the epochs
EVALUATIONS = 30  # at most, during a run


def general_recipe(
    facts: DatasetFacts, given: Mapping[str, Any] | None = None, *, stem: str = "cifar"
) -> dict[str, Any]:
    """Returns the values of config keys for training on a dataset, for those not given.

    Args:
      facts: of the dataset.
      given: the keys, such as "data.image_size", that the user sets, and their values: they are
        not in the result, and the other values fit them.
      stem: stem of the model, "cifar" or one for images of ImageNet's size.

    >>> recipe = general_recipe(DatasetFacts(150, None, 3), {"epochs": 10})
    >>> recipe["data.image_size"], recipe["batch_size"], recipe["warmup_epochs"]
    (64, 8, 0.5)
    """
    given = given or {}
    row = next(row for row in BUCKETS if facts.examples <= row.examples)
    epochs = given.get("epochs", row.epochs)
    changes = {
        "batch_size": max(1, min(row.batch_size, facts.examples)),
        "epochs": row.epochs,
        "warmup_epochs": round(WARMUP_SHARE * epochs, 2),
        "eval_every_epochs": max(1, epochs // EVALUATIONS),
        "label_smoothing": 0.1,
        **_optimizer_keys(row, given),
        **_image_keys(facts, given, stem),
    }
    return {key: value for key, value in changes.items() if key not in given}


def _optimizer_keys(row: Row, given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("pretrained"):
        fine_tuning = {"learning_rate": 3e-4, "head_learning_rate": 3e-3, "weight_decay": 0.05}
        return {"optimizer": "adamw", **fine_tuning} if "optimizer" not in given else {}
    if given.get("optimizer", "sgd") == "sgd":
        return {"learning_rate": row.learning_rate, "weight_decay": 5e-4}
    return {"learning_rate": 1e-3, "weight_decay": 0.05}


def _image_keys(facts: DatasetFacts, given: Mapping[str, Any], stem: str) -> dict[str, Any]:
    if facts.has_arrays:
        return {"data.image_size": 0, "data.pad_crop": min(facts.image_size or (0,)) // 8}
    size = _image_size(facts, given, stem)
    keys: dict[str, Any] = {"data.image_size": size, "data.flip": True}
    if given.get("pretrained") or (size and facts.examples > MAX_SQUASHED):
        return keys
    if size:
        keys["data.train_crop"] = "squash"
    if given.get("data.train_crop") != "inception":
        keys["data.pad_crop"] = (size or min(facts.image_size or (0,))) // 8
    return keys


def _image_size(facts: DatasetFacts, given: Mapping[str, Any], stem: str) -> int:
    if "data.image_size" in given:
        return int(given["data.image_size"])
    if given.get("pretrained"):
        return -1  # the pretrained model's
    if facts.image_size is not None:
        return 0
    return CIFAR_SIZE if stem == "cifar" else IMAGENET_SIZE
