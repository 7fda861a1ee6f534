"""Training recipes of the studies by dataset, the same for every network of a study."""

from typing import Any

from ml_collections import ConfigDict

from resflax.train import default_config

# He et al. 2015, section 4.2: 64,000 steps of 128 are 164 epochs of CIFAR-10.
PAPER: dict[str, Any] = {
    "epochs": 164,
    "batch_size": 128,
    "schedule": "step",
    "decay_epochs": (82, 123),
    "warmup_epochs": 0.0,
    "pad_crop": 4,
    "flip": True,
}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "epochs": 10,
        "batch_size": 128,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
    },
}


def make_recipe(
    dataset: str, epochs: int | None = None, batch_size: int | None = None
) -> ConfigDict:
    """Returns the config of a study's networks: the paper's SGD, without weight decay of norms.

    Args:
      dataset: name of the dataset; without a row in `RECIPES`, `PAPER` (for CIFAR-10) is used.
      epochs: overrides the recipe's epochs; decay and warmup epochs are scaled with it.
      batch_size: overrides the recipe's batch size.
    """
    values = dict(RECIPES.get(dataset, PAPER))
    config = default_config()
    config.dataset, config.nesterov, config.weight_decay = dataset, False, 1e-4
    config.data.pad_crop, config.data.flip = values.pop("pad_crop", 0), values.pop("flip", False)
    if epochs:
        decay_epochs = values.get("decay_epochs", ())
        values["decay_epochs"] = tuple(e * epochs / values["epochs"] for e in decay_epochs)
        values["epochs"] = epochs
        values["warmup_epochs"] = min(values["warmup_epochs"], epochs / 4)
    config.update(values)
    if batch_size:
        config.batch_size = batch_size
    return config
