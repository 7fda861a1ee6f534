"""Trained networks for studies that look into one: from a run's folder, or trained now and kept."""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from resflax.cli.study import add_training
from resflax.data import Dataset, load_dataset
from resflax.errors import UserError
from resflax.nn import unstack_params
from resflax.run import checkpoint
from resflax.run.manifest import params_sha256
from resflax.study.folder import ARRAYS, Folder
from resflax.study.sweep import train_each
from resflax.train import TrainState
from resflax.train.builders import build_dataset, build_optimizer, build_schedule, build_state
from resflax.train.config import default_config, spec_overrides
from resflax.weights import read_weights
from resflax.zoo import create_model

Net = tuple[Any, Any]  # a model that is not scanned, and its variables


def add_nets(parser: argparse.ArgumentParser, *, rate: str) -> None:
    """The options of a study that looks into networks."""
    parser.add_argument("--runs", default="", metavar="DIR,DIR", help="folders of train.py instead")
    parser.add_argument(
        "--weights",
        default="",
        metavar="NAME:FILE,FILE",
        help="imported weights instead: files, folders or names of the Hub, on --dataset",
    )
    add_training(parser, seeds=1, rates=rate)


def open_nets(
    args: argparse.Namespace, names: list[str], config: ConfigDict, settings: dict[str, Any]
) -> tuple[Folder, dict[str, tuple[Net, Dataset]]]:
    """The study's folder, and the networks to look into with what each was trained on.

    These are the runs of `--runs` or the imported nets of `--weights`, by place and name, or else
    the named ones, trained alike.
    """
    settings = settings | {"runs": args.runs, "learning_rates": args.learning_rates}
    settings |= {"config": config.to_dict(), "weights": args.weights}
    if args.runs and args.weights:
        raise UserError("--runs and --weights are both given: expected one of them")
    if args.runs or args.weights:
        if args.runs:
            loaded = {path: from_run(Path(path)) for path in _places("--runs", args.runs)}
        else:
            dataset = load_dataset(args.dataset, args.data_dir)
            places = _places("--weights", args.weights)
            loaded = {place: from_weights(place, dataset) for place in places}
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


def _places(option: str, text: str) -> list[str]:
    """The places that an option names, `A,B`.

    Raises:
      UserError: if it names one twice.
    """
    places = text.split(",")
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"{option} names {place} more than once")
    return places


def from_weights(place: str, dataset: Dataset) -> tuple[str, Net, Dataset]:
    """A network with imported weights: its name, itself, and the dataset, normalised as for it.

    Args:
      place: "NAME:FILE", or a folder or a name of the Hub whose config tells which network it is.
      dataset: to look at it with.

    Raises:
      UserError: if they cannot be read, or the network is not for such images and classes.
    """
    name, _, where = place.rpartition(":")
    card, variables, _ = read_weights(where, name or None)
    height, width, channels = dataset.image_shape
    minimum = card.spec.min_image_size
    if (card.channels, card.spec.num_classes) != (channels, dataset.num_classes):
        raise UserError(
            f"{where} is for {card.channels} channels and {card.spec.num_classes} classes:"
            f" {dataset.name} has {channels} and {dataset.num_classes}"
        )
    if min(height, width) < minimum:
        raise UserError(
            f"{where} needs images of {minimum}x{minimum}: {dataset.name}'s are smaller"
        )
    normalized = dataset.with_normalization(card.preprocess.mean, card.preprocess.std)
    return name or where, (create_model(card.spec, scan=False), variables), normalized


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
    dataset = build_dataset(config)
    fields = spec_overrides(config) | {"num_classes": dataset.num_classes}
    model = create_model(config.model, scan=config.scan, **fields)
    optimizer = build_optimizer(config, build_schedule(config, len(dataset.train)))
    like = jax.eval_shape(lambda: build_state(config, model, optimizer, dataset.image_shape))
    zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), like)
    state = checkpoint.restore(path / "checkpoints", zeros)
    return config.model, (model.clone(scan=False), unstack_params(state.eval_variables)), dataset


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
