"""The members that `resflax evaluate` evaluates: networks, or samples of one (`--mc-dropout`)."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from resflax.cli.evaluate_flags import parse_preprocess
from resflax.cli.run_data import read_run_config
from resflax.errors import UserError
from resflax.evaluate.arrays import ArrayClassifier
from resflax.evaluate.classifier import DropoutClassifier, EnsembleClassifier, MemberClassifier
from resflax.inference.build import check_test_pool
from resflax.nn import Spec
from resflax.nn.drop import RATES
from resflax.weights import Weights, adapt_weights, read_ensemble
from resflax.weights.array_preprocess import ArrayPreprocess
from resflax.weights.ensemble import describe_members
from resflax.weights.workdirs import split_checkpoint

# Seed of the samples of MC dropout.
DROPOUT_SEED = 0


class Members(NamedTuple):
    """Members of an evaluation.

    Attributes:
      networks: the networks, with the preprocessing of the command line.
      samples: number of samples of MC dropout of the one network; 0 without it.
      test_pool: height and width of the training images, or where they are not known the model's
        own input size, for test-time pooling; None without it.
    """

    networks: tuple[Weights, ...]
    samples: int = 0
    test_pool: tuple[int, int] | None = None

    @property
    def spec(self) -> Spec:
        """The architecture of the first network."""
        return self.networks[0].config.spec

    @property
    def names(self) -> list[str]:
        """Name of each member."""
        if self.samples:
            return [f"{self.networks[0].where}, sample {s}" for s in range(self.samples)]
        return [network.where for network in self.networks]

    @property
    def sources(self) -> list[str]:
        """One line for each member that says what was loaded."""
        if self.samples:
            return [f"{self.networks[0].source}, sample {s}" for s in range(self.samples)]
        return [network.source for network in self.networks]

    def describe(self) -> str:
        """Returns one line that names the networks, and the samples if there are any."""
        line = describe_members(self.networks)
        if self.samples:
            rates = [f"{name.replace('_', ' ')} {getattr(self.spec, name):g}" for name in RATES]
            line += f"; {self.samples} samples of MC dropout ({', '.join(rates)})"
        return line

    def describe_steps(self) -> str:
        """Returns at which steps the networks of runs are; "" if there are none."""
        names: dict[str, list[str]] = {}
        for network in self.networks:
            if network.history:
                names.setdefault(str(network.history), []).append(network.where)
        if len(names) == 1 and len(self.networks) == len(next(iter(names.values()))):
            return next(iter(names))
        return "; ".join(f"{step}: {', '.join(members)}" for step, members in names.items())

    def as_json(self) -> dict[str, Any]:
        """Returns entries of `evaluation.json`.

        Returns:
          "checkpoints", of the networks of runs, with "where", "step" and "unfinished";
          "test_pool", the field, with test-time pooling;
          "mc_dropout", if there are samples; "normalization", the mean and std of each network, if
          they differ.
        """
        values: dict[str, Any] = {
            "checkpoints": [
                {
                    "where": network.where,
                    "step": network.history.step,
                    "unfinished": network.history.is_unfinished,
                }
                for network in self.networks
                if network.history
            ],
        }
        if self.samples:
            rates = {name: getattr(self.spec, name) for name in RATES}
            values["mc_dropout"] = {"samples": self.samples, "seed": DROPOUT_SEED, **rates}
        if self.test_pool:
            values["test_pool"] = self.test_pool
        moments = [
            {"mean": list(preprocess.mean), "std": list(preprocess.std)}
            for preprocess in (network.config.preprocess for network in self.networks)
        ]
        if any(own != moments[0] for own in moments):
            values["normalization"] = moments
        return values

    def classifier(self, dtype: str) -> MemberClassifier:
        """Returns what computes their logits from uint8 images."""
        if self.samples:
            [network] = self.networks
            preprocess = network.config.preprocess
            return DropoutClassifier(
                network.config.spec,
                network.variables,
                samples=self.samples,
                mean=preprocess.mean,
                std=preprocess.std,
                dtype=dtype,
                seed=DROPOUT_SEED,
            )
        if isinstance(self.networks[0].config.preprocess, ArrayPreprocess):
            return ArrayClassifier(self.networks, dtype=dtype)
        return EnsembleClassifier.from_weights(self.networks, dtype=dtype, test_pool=self.test_pool)


def read_evaluated_members(args: argparse.Namespace) -> Members:
    """Reads the networks that the command line names.

    Raises:
      UserError: if they cannot be read, have no classes, or an option does not fit them.
    """
    networks = tuple(
        adapt_weights(network)
        for network in read_ensemble(args.where, args.model, revision=args.revision)
    )
    if not networks[0].config.spec.num_classes:
        raise UserError(
            f"{args.where[0]} has no classification head: expected weights with classes"
        )
    if args.select and not 0 < args.select < len(networks):
        raise UserError(
            f"--select is {args.select}: expected fewer than the {len(networks)} members"
            if len(networks) > 1
            else f"--select is {args.select}, but {args.where[0]} is one network: expected an"
            " ensemble"
        )
    if args.mc_dropout:
        networks = (_with_dropout(networks),)
    preprocessed = tuple(_with_preprocess(network, args) for network in networks)
    size = preprocessed[0].config.preprocess.size
    test_pool = _test_pool(networks, size) if args.test_pool else None
    return Members(preprocessed, args.mc_dropout or 0, test_pool)


def _test_pool(networks: Sequence[Weights], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width of the images that the networks were trained on.

    Args:
      networks: with their own preprocessing, whose size it is where a run does not say.
      size: height and width of the evaluated images.

    Raises:
      UserError: if test-time pooling does not fit the networks or the size of the images.
    """
    for network in networks:
        check_test_pool(network.config.spec)
    trained = [_trained_size(network.where) for network in networks]
    own, *others = {
        known or network.config.preprocess.size
        for known, network in zip(trained, networks, strict=True)
    }
    if others:
        raise UserError("--test-pool needs networks with images of one size: leave it out")
    if not all(new > old for new, old in zip(size, own, strict=True)):
        sides, new = ("x".join(map(str, s)) for s in (own, size))
        what = "those of training" if all(trained) else "the model's own input size"
        raise UserError(
            f"--test-pool is for images larger than {what}, {sides}, and they have {new} here:"
            " expected a larger --size"
        )
    return own


def _trained_size(where: str) -> tuple[int, int] | None:
    """Returns the height and width of a run's training images, the last ones of a schedule.

    None if its config has no size in pixels, or `where` is not a run.
    """
    name = split_checkpoint(where)
    config = read_run_config(name.folder) if name else {"data": {}}
    rows = config["data"].get("size_schedule", ())
    sides = [row[1] for row in rows if row[0] < config.get("epochs", 0)]
    side = sides[-1] if sides else config["data"].get("image_size", 0)
    return (side, side) if side > 0 else None


def _with_preprocess(network: Weights, args: argparse.Namespace) -> Weights:
    preprocess = parse_preprocess(args, network.config.preprocess)
    return network._replace(config=network.config._replace(preprocess=preprocess))


def _with_dropout(networks: Sequence[Weights]) -> Weights:
    """Returns the one network, with the rates that it was trained with.

    Raises:
      UserError: if there are several networks, or it has neither rate.
    """
    first = networks[0]
    if len(networks) > 1:
        raise UserError(
            f"--mc-dropout takes samples of one network, and WHERE names {len(networks)}: name one,"
            f" such as {first.where}"
        )
    config = first.config
    rate = _member_drop_path(first.where)
    spec = config.spec if rate is None else config.spec.override(drop_path=rate)
    if not any(getattr(spec, name) for name in RATES):
        raise UserError(
            f"--mc-dropout needs a network with dropout, drop path or DropBlock, and {first.where}"
            " has none: expected a run that was trained with --config.spec.dropout,"
            " --config.spec.drop_path or --config.spec.drop_block"
        )
    return first._replace(config=config._replace(spec=spec))


def _member_drop_path(where: str) -> float | None:
    """Returns the member's rate in `config.ensemble.drop_path`; None if it is that of the spec."""
    name = split_checkpoint(where)
    if name is None or not name.members:
        return None
    rates = read_run_config(name.folder).get("ensemble", {}).get("drop_path")
    return float(rates[name.members[0]]) if rates else None
