"""Further datasets that a run evaluates: `config.eval_sets`."""

import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from resflax.data import Dataset, load_split
from resflax.data.datasets import add_eval_sets
from resflax.data.location import FeatureKeys
from resflax.errors import UserError

EXPECTED = "NAME=DATASET,NAME=DATASET, such as 'v2=folder:imagenet-v2', or a list of NAME=DATASET"
NAME = re.compile(r"[A-Za-z][\w.-]*")
# Names of records that are not those of further sets.
RESERVED = ("train", "validation", "test")


def parse_eval_sets(value: str | Sequence[str] | None) -> dict[str, str]:
    """Returns the datasets by name.

    Args:
      value: "NAME=DATASET,NAME=DATASET", or a list of "NAME=DATASET", whose datasets may have
        commas.

    Raises:
      UserError: if a name is missing, not valid or given twice.

    >>> parse_eval_sets("v2=folder:imagenet-v2,real=folder:real")
    {'v2': 'folder:imagenet-v2', 'real': 'folder:real'}
    """
    rows = value.split(",") if isinstance(value, str) else list(value or ())
    sets: dict[str, str] = {}
    for row in filter(None, rows):
        name, separator, dataset = (part.strip() for part in str(row).partition("="))
        if not (separator and dataset and NAME.fullmatch(name)) or name in (*RESERVED, *sets):
            raise UserError(
                f"config.eval_sets has {row!r}: expected {EXPECTED}, with names other than"
                f" {', '.join(RESERVED)}, each once"
            )
        sets[name] = dataset
    return sets


def open_eval_sets(config: ConfigDict, dataset: Dataset) -> Dataset:
    """Returns a dataset with the further sets of a config, of each its test split.

    Raises:
      UserError: if one cannot be opened, or has other classes or shapes than the dataset.
    """
    data, sets = config.data, parse_eval_sets(config.eval_sets)
    sources = {
        name: load_split(
            path,
            data_dir=data.data_dir,
            on_bad_example=data.on_bad_example,
            seed=config.seed,
            keys=FeatureKeys.from_config(data),
        )
        for name, path in sets.items()
    }
    return add_eval_sets(dataset, sources) if sources else dataset
