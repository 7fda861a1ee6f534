"""Efficient ensembles on the embedded digits against a deep ensemble, at equal compute.

The argument after the colon is a name in `VARIANTS`. Results: docs/ensembles.md, "Measured on the
digits".

Command::

    for name in single packed mimo deep batch packed_wide mimo_wide; do for seed in 0 10 20; do
      python train.py --config=configs/digits_efficient.py:$name --config.seed=$seed \
        --workdir=runs/efficient-$name-$seed
    done; done
"""

from typing import Any

from ml_collections import ConfigDict

from resflax.errors import unknown
from resflax.train import default_config

WIDE = {"widths": (32, 64, 128), "stem_width": 32}
# Fields of the spec; "deep" is an ensemble of separate networks.
VARIANTS: dict[str, dict[str, Any]] = {
    # The multiply-adds of one network.
    "single": {},
    "packed": {"ensemble": "packed", "members": 4, "alpha": 2.0},
    "mimo": {"ensemble": "mimo", "members": 2, "batch_repetition": 4},
    # Four times as many.
    "deep": {},
    "batch": {"ensemble": "batch", "members": 4},
    "packed_wide": {"ensemble": "packed", "members": 4, "alpha": 4.0},
    "mimo_wide": {"ensemble": "mimo", "members": 2, "batch_repetition": 4, **WIDE},
}


def get_config(name: str = "batch") -> ConfigDict:
    """Returns the recipe of a variant."""
    if name not in VARIANTS:
        raise unknown("variant of configs/digits_efficient.py", name, VARIANTS)
    config = default_config()
    config.model = "cifar_resnet8"
    config.dataset = "digits"
    config.epochs = 15
    config.batch_size = 64
    config.learning_rate = 0.1
    config.warmup_epochs = 1.0
    config.weight_decay = 5e-4
    config.data.pad_crop = 1
    config.spec.update(VARIANTS[name])
    if name == "deep":
        config.ensemble.size = 4
    elif config.spec.ensemble:
        # The loss is the mean over the members, so their own parameters have 1 / members of the
        # gradient. With this, a packed member trains as a network of its own.
        config.learning_rate *= config.spec.members
        config.weight_decay /= config.spec.members
    return config
