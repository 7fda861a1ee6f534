"""Trained networks for studies that look into one: from a run's folder, or trained now and kept."""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from resflax.data import Dataset, load_dataset
from resflax.errors import UserError
from resflax.nn import unstack_params
from resflax.study.cli import add_training
from resflax.study.folder import ARRAYS, Folder
from resflax.study.members import train_each
from resflax.train import TrainState, checkpoint
from resflax.train.config import default_config, spec_overrides
from resflax.train.loop import optimizer_from, schedule_from
from resflax.train.rundir import params_sha256
from resflax.train.state import create_state
from resflax.zoo import create_model

Net = tuple[Any, Any]  # a model that is not scanned, and its variables


def add_nets(parser: argparse.ArgumentParser, *, rate: str) -> None:
    """The options of a study that looks into networks."""
    parser.add_argument("--runs", default="", metavar="DIR,DIR", help="folders of train.py instead")
    add_training(parser, seeds=1, rates=rate)


def open_nets(
    args: argparse.Namespace, names: list[str], config: ConfigDict, settings: dict[str, Any]
) -> tuple[Folder, dict[str, tuple[Net, Dataset]]]:
    """The study's folder, and the networks to look into with what each was trained on.

    These are the runs of `--runs`, by folder and name, or else the named ones, trained alike.
    """
    settings = settings | {"runs": args.runs, "learning_rates": args.learning_rates}
    settings["config"] = config.to_dict()
    if args.runs:
        loaded = {path: from_run(Path(path)) for path in _folders(args.runs)}
        # What is kept was measured on these parameters: a run trained again is another study.
        settings["params_sha256"] = {
            path: params_sha256(net[1]["params"]) for path, (_, net, _) in loaded.items()
        }
        folder = Folder.open(args.out, settings)
        return folder, {
            f"{path}: {name}": (net, dataset) for path, (name, net, dataset) in loaded.items()
        }
    dataset = load_dataset(args.dataset, args.data_dir)
    folder = Folder.open(args.out, settings)
    nets = trained(folder, names, dataset, config, args.learning_rates[0])
    return folder, {name: (net, dataset) for name, net in nets.items()}


def _folders(text: str) -> list[str]:
    """The folders that `--runs=DIR,DIR` names.

    Raises:
      UserError: if it names one twice.
    """
    paths = text.split(",")
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--runs names {path} more than once")
    return paths


def from_run(path: Path) -> tuple[str, Net, Dataset]:
    """A network that `train.py` trained: its name, itself, and what it was trained on.

    Raises:
      UserError: if the folder is no run's.
    """
    try:
        config = default_config()
        config.update(json.loads((path / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not the folder of a run: {e}") from e
    dataset = load_dataset(config.dataset, config.data.dir)
    fields = spec_overrides(config) | {"num_classes": dataset.num_classes}
    model = create_model(config.model, scan=config.scan, **fields)
    optimizer = optimizer_from(config, schedule_from(config, len(dataset.train)))
    like = jax.eval_shape(lambda: create_state(model, optimizer, 0, dataset.image_shape))
    zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), like)
    state = checkpoint.restore(path / "checkpoints", zeros)
    return config.model, (model.clone(scan=False), unstack_params(state.variables)), dataset


def trained(
    folder: Folder, names: list[str], dataset: Dataset, config: ConfigDict, rate: float
) -> dict[str, Net]:
    """The named networks, trained from seed 0 now, or kept in the folder from an earlier start."""
    fields: Any = {"zero_init": False, "num_classes": dataset.num_classes}
    models = {name: create_model(name, **fields) for name in names}
    kept = train_each(
        folder, models, dataset, config, seeds=1, rates=[rate], take=_variables, form=ARRAYS
    )
    return {
        name: (model.clone(scan=False), unstack_params(kept[name]))
        for name, model in models.items()
    }


def _variables(states: TrainState, curves: Any) -> Any:
    """Those of the only member."""
    return jax.device_get(jax.tree.map(lambda leaf: leaf[0], states.variables))
