"""Everything that `resflax evaluate` needs: the model, the examples, and how they fit."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from resflax.cli.evaluate_flags import check_image_size, parse_preprocess
from resflax.data import load_split
from resflax.data.source import Source
from resflax.errors import UserError
from resflax.evaluate.classes import (
    LabelMap,
    make_label_map,
    read_real_labels,
    read_valid_labels,
    real_labels_of,
)
from resflax.evaluate.views import Views
from resflax.weights import Preprocess, Pretrained, load_pretrained
from resflax.weights.workdirs import BEST, split_checkpoint


class Plan(NamedTuple):
    """Everything that an evaluation needs, checked before anything is computed.

    Attributes:
      pretrained: the network.
      selection: one line that says by which split the checkpoint was chosen.
      preprocess: its preprocessing, with the values of the command line.
      dataset: name of the dataset.
      source: the examples.
      on_bad_example: "raise" or "skip".
      dtype: compute dtype: by default that of the run if its own dataset is evaluated.
      views: the views of each image.
      label_map: the classes that count.
      real_labels: ReaL labels of each example; empty without them.
    """

    pretrained: Pretrained
    selection: str
    preprocess: Preprocess
    dataset: str
    source: Source
    on_bad_example: str
    dtype: str
    views: Views
    label_map: LabelMap
    real_labels: list[list[int]]


def make_plan(args: argparse.Namespace) -> Plan:
    """Loads the model and opens the dataset, and checks that they fit.

    Raises:
      UserError: if something is invalid.
    """
    views = Views(args.tta == "flip", args.crops, args.scales)
    valid_labels = read_valid_labels(args.valid_labels) if args.valid_labels else ()
    real_labels = read_real_labels(args.real_labels) if args.real_labels else []
    own = _own_dataset(args.where)
    if not args.dataset and own is None:
        exists = Path(args.where).exists()
        raise UserError(
            f"{args.where} is not the workdir of a run, whose dataset is known: expected"
            " --dataset=NAME"
            if exists
            else f"{args.where} does not exist here: expected the workdir of a run, or"
            " --dataset=NAME with a model of the Hub"
        )
    pretrained = load_pretrained(args.where, model=args.model, revision=args.revision)
    spec = pretrained.model.spec
    if not spec.num_classes:
        raise UserError(f"{args.where} has no classification head: expected weights with classes")
    preprocess = parse_preprocess(args, pretrained.preprocess)
    check_image_size(views.scales or preprocess.size, spec)
    config = own if own and args.dataset in ("", own["dataset"]) else {}
    on_bad_example = args.on_bad_example or config.get("data", {}).get("on_bad_example", "raise")
    source = _open_source(args, config, pretrained, on_bad_example)
    return Plan(
        pretrained=pretrained,
        selection=_selection(args.where, bool(config)),
        preprocess=preprocess,
        dataset=args.dataset or config["dataset"],
        source=source,
        on_bad_example=on_bad_example,
        dtype=args.dtype or config.get("dtype", "float32"),
        views=views,
        label_map=make_label_map(pretrained.classes, spec.num_classes, source, valid_labels),
        real_labels=real_labels and real_labels_of(source, real_labels, args.real_labels),
    )


def _open_source(
    args: argparse.Namespace,
    config: dict[str, Any],
    pretrained: Pretrained,
    on_bad_example: str,
) -> Source:
    """Opens the split; `config` is that of the run if its own dataset is evaluated, else {}."""
    return load_split(
        args.dataset or config["dataset"],
        args.split,
        data_dir=args.data_dir or config.get("data", {}).get("data_dir", ""),
        labels_file=args.labels_file,
        class_names=pretrained.classes,
        num_classes=pretrained.model.spec.num_classes,
        on_bad_example=on_bad_example,
        seed=config.get("seed", 0),
    )


def _own_dataset(where: str) -> dict[str, Any] | None:
    """Returns the config of the run in a workdir; None if `where` is not a workdir."""
    found = split_checkpoint(where)
    if found is None:
        return None
    try:
        config = json.loads((found[0] / "config.json").read_text())
        return {key: config[key] for key in ("dataset", "seed", "data", "dtype")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{found[0]} has no valid config.json: {e}") from e


def _selection(where: str, own_split: bool) -> str:
    """Returns by which split the checkpoint was chosen."""
    found = split_checkpoint(where)
    if found is None:
        return "not known for these weights"
    if found[1] != BEST:
        return f"by its position in the run ({found[1]}), not by a split"
    optimistic = ", so the results below are optimistic" if own_split else ""
    return f"by the accuracy on the run's own test split{optimistic}"


def describe(plan: Plan) -> str:
    """Returns lines with the weights, the checkpoint, the preprocessing, the data and views."""
    preprocess, source = plan.preprocess, plan.source
    height, width = preprocess.size
    resize = f"{height}x{width}, crop_pct {preprocess.crop_pct:g}, {preprocess.crop_mode} crop"
    resize = "whole images" if plan.views.scales else resize
    mean, std = (", ".join(f"{x:.4g}" for x in v) for v in (preprocess.mean, preprocess.std))
    lines = [
        f"weights: {plan.pretrained.source}",
        f"checkpoint chosen: {plan.selection}",
        f"preprocessing: {resize}, {preprocess.interpolation}, mean ({mean}), std ({std})",
        f"data: {source.name}, {len(source):,} examples of {len(plan.label_map.columns)} classes;"
        f" {plan.views}; {plan.dtype}",
    ]
    if plan.views.count > 1:
        lines[-1] += f" (probabilities averaged over {plan.views.count} views)"
    return "\n".join(lines)
