"""Trained networks for studies of one network: from runs, imported weights, or trained here."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.errors import UserError
from resflax.nn import ResNet, unstack_params
from resflax.run.manifest import params_sha256
from resflax.study.arguments import add_training_arguments, open_dataset
from resflax.study.study_dir import MSGPACK, StudyDir
from resflax.study.sweep import Curves, train_networks
from resflax.train import TrainState
from resflax.train.config import default_config
from resflax.train.dataset import build_dataset, normalize_dataset
from resflax.weights import read_weights
from resflax.weights.workdirs import split_checkpoint
from resflax.zoo import create_model


class Net(NamedTuple):
    """A trained network.

    Attributes:
      label: its name in results and figures.
      model: the network, with `scan=False`.
      variables: "params" and "batch_stats".
      dataset: its dataset, with the normalization that the network was trained with.
    """

    label: str
    model: ResNet
    variables: Any
    dataset: Dataset


def add_net_arguments(parser: argparse.ArgumentParser, *, rate: str) -> None:
    """Adds the options of a study that analyzes trained networks."""
    parser.add_argument(
        "--runs", default="", metavar="DIR,DIR", help="analyze the networks of these workdirs"
    )
    parser.add_argument(
        "--weights",
        default="",
        metavar="NAME:FILE,FILE",
        help="analyze imported weights (files, folders, Hub repositories) on --dataset",
    )
    add_training_arguments(parser, seeds=1, rates=rate)


@contextlib.contextmanager
def open_nets(
    args: argparse.Namespace, names: list[str], config: ConfigDict, settings: dict[str, Any]
) -> Iterator[tuple[StudyDir, list[Net]]]:
    """Opens the study's directory and yields it with the networks to analyze.

    Args:
      args: options of `add_net_arguments`, and `out`.
      names: networks to train with seed 0 if there are neither `--runs` nor `--weights`.
      config: config to train them with.
      settings: settings of the study.

    Raises:
      UserError: if a network cannot be loaded or built, or the directory cannot be used.
    """
    if args.runs and args.weights:
        raise UserError("--runs and --weights are both given: expected one of them")
    settings = settings | {
        "runs": args.runs,
        "weights": args.weights,
        "learning_rates": args.learning_rates,
        "config": config.to_dict(),
    }
    if args.runs or args.weights:
        loaded = load_nets(args)
        # If a run was trained again, the finished parts of the study do not apply to it.
        settings["params_sha256"] = {
            source: params_sha256(net.variables["params"]) for source, net in loaded.items()
        }
        with StudyDir.open(args.out, settings) as study:
            yield study, list(loaded.values())
        return
    dataset = open_dataset(args)
    fields: Any = {"zero_init": False, "num_classes": dataset.num_classes}
    models = {name: create_model(name, **fields) for name in names}
    with StudyDir.open(args.out, settings) as study:
        yield study, train_nets(study, models, dataset, config, args.learning_rates[0])


def load_nets(args: argparse.Namespace) -> dict[str, Net]:
    """Loads the networks of `--runs` or `--weights`, by their source."""
    option, value = ("--runs", args.runs) if args.runs else ("--weights", args.weights)
    sources = value.split(",")
    for source in sources:
        if sources.count(source) > 1:
            raise UserError(f"{option} has {source} more than once")
    if args.runs:
        return {source: load_run(source) for source in sources}
    dataset = open_dataset(args)
    return {source: load_weights(source, dataset) for source in sources}


def load_weights(source: str, dataset: Dataset) -> Net:
    """Loads a network with imported weights.

    Args:
      source: "NAME:FILE", or a folder or Hub repository with a config.json that has the name.
      dataset: dataset to analyze it on; it gets the normalization of the weights.

    Raises:
      UserError: if they cannot be read, or do not fit the dataset's images and classes.
    """
    name, _, location = source.rpartition(":")
    config, variables, *_ = read_weights(location, name or None)
    height, width, channels = dataset.image_shape
    minimum = config.spec.min_image_size
    if (config.channels, config.spec.num_classes) != (channels, dataset.num_classes):
        raise UserError(
            f"{location} has {config.channels} channels and {config.spec.num_classes} classes:"
            f" expected {channels} and {dataset.num_classes}, as {dataset.name} has"
        )
    if min(height, width) < minimum:
        raise UserError(
            f"{location} needs images of {minimum}x{minimum} or more: those of {dataset.name} have"
            f" {height}x{width}"
        )
    normalized = dataset.with_normalization(config.preprocess.mean, config.preprocess.std)
    model = create_model(config.spec, scan=False)
    return Net(f"{source}: {name or location}", model, variables, normalized)


def load_run(path: str | Path) -> Net:
    """Loads the network that a run evaluated at its latest valid checkpoint.

    Args:
      path: workdir of the run, also with a checkpoint, such as "runs/x@best".

    Raises:
      UserError: if the path is not the workdir of a run, or has no valid checkpoint.
    """
    found = split_checkpoint(str(path))
    if not found:
        raise UserError(f"{path} is not the workdir of a run")
    try:
        config = default_config()
        config.update(json.loads((found[0] / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not the workdir of a run: {e}") from e
    weights = read_weights(path)
    dataset = normalize_dataset(build_dataset(config, weights.config), config, weights.config)
    model = create_model(weights.config.spec, dtype=config.dtype, scan=False)
    return Net(f"{path}: {config.model or config.pretrained}", model, weights.variables, dataset)


def train_nets(
    study: StudyDir, models: dict[str, ResNet], dataset: Dataset, config: ConfigDict, rate: float
) -> list[Net]:
    """Trains the networks with seed 0, or reads the study's finished parts."""
    variables = train_networks(
        study,
        models,
        dataset,
        config,
        seeds=1,
        rates=[rate],
        extract=_only_member_variables,
        codec=MSGPACK,
    )
    return [
        Net(name, model.clone(scan=False), unstack_params(variables[name]), dataset)
        for name, model in models.items()
    ]


def _only_member_variables(states: TrainState | None, curves: Curves) -> Any:
    if states is None:
        raise UserError("a network has no finite loss: use a lower value of --learning_rates")
    return jax.device_get(jax.tree.map(lambda leaf: leaf[0], states.variables))


def leaves_by_layer(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves with their paths ("stage1_block1/norm1"), in the order of the layers.

    Layers of projection shortcuts (Ws) are left out.

    Args:
      tree: nested dictionaries of parameters, or of `capture_intermediates` with one call of each
        module.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/__call__/0"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

    def order(path: str) -> Any:
        digits = "".join(c if c.isdigit() else " " for c in path).split()
        return (not path.startswith("stem"), not path.startswith("stage"), [int(d) for d in digits])

    return [(path, leaves[path]) for path in sorted(leaves, key=order) if "Ws" not in path]
