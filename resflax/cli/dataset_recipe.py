"""The recipe of a run without `--config`: that of its workdir, of the digits, or of its dataset."""

import json
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resflax.cli.config_values import set_values
from resflax.cli.dataset_facts import DatasetFacts, dataset_facts
from resflax.cli.general_recipe import general_recipe
from resflax.data.kinds import FILE_PREFIXES
from resflax.data.location import Location
from resflax.errors import UserError, quantity
from resflax.files import user_path
from resflax.run.config_diff import flatten_config
from resflax.train.config import default_config
from resflax.train.config_keys import KEYS
from resflax.train.run_builder import OpenDataset
from resflax.train.unknown_keys import unknown_key
from resflax.train.unused_keys import reset_unused
from resflax.zoo import get_spec


def find_recipe_of(
    texts: dict[str, str | None], workdir: str, open_dataset: OpenDataset
) -> tuple[ConfigDict, tuple[str, ...]]:
    """Returns the recipe for a command line with a dataset, and lines that say which it is.

    Args:
      texts: texts of the keys of the command line; see `set_values`.
      workdir: a directory whose run is resumed, if it has one on this dataset; "" for none.
      open_dataset: opens the dataset of a config.

    Raises:
      UserError: if a key is invalid, or the dataset cannot be opened.
    """
    config = run_recipe(workdir, texts["dataset"] or "")
    if config is not None:
        return config, (f"no --config: the recipe is that of the run in {workdir}",)
    config, line = dataset_recipe(texts, open_dataset)
    return config, (line,)


def run_recipe(workdir: str, dataset: str) -> ConfigDict | None:
    """Returns the config of the run in a workdir; None if it has no run on this kind of dataset.

    The data may have moved: whether they are the same is known from their fingerprint only.

    Raises:
      UserError: if the config has keys of another version.
    """
    file = user_path(workdir, "workdir") / "config.json" if workdir else None
    if file is None or not file.is_file():
        return None
    try:
        values = flatten_config(json.loads(file.read_text()))
    except (OSError, ValueError, AttributeError):  # `fit` refuses the workdir
        return None
    saved = str(values.get("dataset", ""))
    if _prefix(saved) != _prefix(dataset) or (not _prefix(saved) and saved != dataset):
        return None
    config = default_config()
    try:
        config.update_from_flattened_dict(
            {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        )
    except (KeyError, TypeError) as e:
        unknown = next((key for key in values if key not in flatten_config(config)), "")
        reason = unknown_key(unknown) if unknown else e
        raise UserError(f"{file} is not a config of this version: {reason}") from e
    return config


def dataset_recipe(
    texts: dict[str, str | None], open_dataset: OpenDataset
) -> tuple[ConfigDict, str]:
    """Returns a recipe for a dataset and the keys of a command line, and a line that describes it.

    Args:
      texts: texts of the keys, "dataset" included; see `set_values`. They are not set.
      open_dataset: opens the dataset of a config.

    Raises:
      UserError: if a key is invalid, or the dataset cannot be opened.
    """
    given = default_config()
    set_values(given, texts)
    values = {key: value for key, value in flatten_config(given).items() if key in texts}
    facts = dataset_facts(given, open_dataset)
    changes = general_recipe(facts, values, stem=_stem(given))
    if values.get("pretrained") and "model" not in values:
        changes["model"] = ""  # that of the weights
    elif facts.has_arrays and "spec.dimensions" not in values and facts.image_size:
        dimensions = len(facts.image_size)
        if get_spec(given.model).dimensions != dimensions:
            changes["spec.dimensions"] = dimensions
    used = _make_config(given.dataset, changes)
    set_values(used, texts)
    unused = reset_unused(used, default_config(), texts)
    chosen = {
        key: value
        for key, value in sorted(changes.items())
        if key not in unused and value != KEYS[key].default
    }
    return _make_config(given.dataset, chosen), _describe(facts, chosen)


def _make_config(dataset: str, changes: dict[str, Any]) -> ConfigDict:
    config = default_config()
    config.update_from_flattened_dict({"dataset": dataset, **changes})
    return config


def workdir_name(dataset: str) -> str:
    """Returns a name for workdirs of runs on a dataset.

    >>> workdir_name("folder:~/data/My flowers/"), workdir_name("csv:lists/train.csv")
    ('My-flowers', 'train')
    >>> workdir_name("emnist/letters"), workdir_name("mnist:3.*.*")
    ('emnist-letters', 'mnist')
    """
    if _prefix(dataset):
        path = Path(Location(dataset).path).expanduser()
        name = path.resolve().name if path.name in ("", ".", "..") else path.name
        is_file = dataset.startswith("csv:") or name.endswith(".npz")
        name = Path(name).stem if is_file else name
    else:
        name = dataset.partition(":")[0]
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "run"


def _prefix(dataset: str) -> str:
    """Returns the prefix of a dataset in files, such as "folder:"; "" for other datasets."""
    return next((prefix for prefix in FILE_PREFIXES if dataset.startswith(prefix)), "")


def _stem(config: ConfigDict) -> str:
    if config.spec.stem or not config.model:
        return str(config.spec.stem or "imagenet")
    return get_spec(config.model).stem


def _describe(facts: DatasetFacts, chosen: dict[str, Any]) -> str:
    if facts.image_size is None:
        size = "of several or large sizes"
    else:
        unit = "positions" if facts.has_arrays else "pixels"
        size = f"of {'x'.join(map(str, reversed(facts.image_size)))} {unit}"
    keys = ", ".join(f"{key}={value}" for key, value in chosen.items())
    images = quantity(facts.examples, "training array" if facts.has_arrays else "training image")
    return f"no --config: recipe for {images} {size} in {facts.classes} classes: {keys}"
