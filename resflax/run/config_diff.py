"""Whether a run may go on with another config than it began with."""

import json
from typing import Any

from ml_collections import ConfigDict

from resflax.train.config import flat_keys

# What moves a run or changes how it is kept, not what it computes.
RESUMABLE_KEYS = (
    "parallel",
    "mesh.",
    "data.data_dir",
    "data.num_workers",
    "data.placement",
    "checkpoint_",
)


def to_json_dict(config: ConfigDict) -> dict[str, Any]:
    """Every value of a config by its dotted key, as JSON keeps it.

    >>> to_json_dict(ConfigDict({"a": (1, 2), "b": {"c": None}}))
    {'a': [1, 2], 'b.c': None}
    """
    return json.loads(json.dumps(flat_keys(config)))


def config_diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What keeps a run from going on: each key whose value is another one, with both values.

    Left out: where and how the run is computed and kept (`RESUMABLE_KEYS`), and more epochs than before.

    >>> config_diff({"seed": 0, "epochs": 9}, {"seed": 1, "epochs": 10})
    ['seed 0, now 1']
    """

    def same(key: str) -> bool:
        if key.startswith(RESUMABLE_KEYS) or old.get(key) == new.get(key):
            return True
        return key == "epochs" and old.get(key, 0) < new[key]

    return [
        f"{key} {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*old, *new})
        if not same(key)
    ]
