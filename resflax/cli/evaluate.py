"""`resflax evaluate WHERE`: accuracy and calibration of a trained network on a dataset."""

import argparse
import dataclasses
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from resflax.cli.evaluate_flags import parse, parse_preprocess
from resflax.data import StreamingSplit, load_split
from resflax.data.source import Source
from resflax.distributed.processes import is_main_process, lost_process_as_user_error
from resflax.errors import UserError
from resflax.evaluate.classes import (
    LabelMap,
    make_label_map,
    read_real_labels,
    read_valid_labels,
    real_labels_of,
)
from resflax.evaluate.classifier import Classifier
from resflax.evaluate.metrics import Metrics, summarize
from resflax.evaluate.predictions import write_predictions
from resflax.evaluate.report import results, table
from resflax.evaluate.run import Evaluated, evaluate_split
from resflax.evaluate.views import Views
from resflax.files import disk_errors_as_user_error, write_atomic
from resflax.progress import ProgressMeter
from resflax.run.signals import InterruptedRunError
from resflax.runtime import enable_compilation_cache
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
    views: Views
    label_map: LabelMap
    real_labels: list[list[int]]


def main(arguments: list[str]) -> None:
    """Evaluates a network, prints the results and writes them to `--out`.

    Raises:
      UserError: if the model, the dataset or an argument is invalid or they do not fit; nothing is
        written then.
      InterruptedRunError: after Ctrl-C.
    """
    args = parse(arguments)
    args.distributed_config.initialize()
    enable_compilation_cache()
    try:
        with lost_process_as_user_error():
            _evaluate(args, arguments)
    except KeyboardInterrupt as e:
        raise InterruptedRunError(signal.SIGINT, "\nstopped: nothing was written") from e


def _evaluate(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    plan = make_plan(args)
    if is_main_process():
        print(_describe(plan))
    start = time.monotonic()
    evaluated = run(plan, args)
    seconds = time.monotonic() - start
    metrics = summarize(evaluated.scores, len(plan.label_map.columns))
    values = results(metrics, evaluated, plan.label_map, plan.real_labels)
    if not is_main_process():
        return
    print(table(values))
    values |= _context(plan, args, arguments, seconds)
    with disk_errors_as_user_error(
        "the results cannot be written", lambda: "choose another --out or --predictions"
    ):
        _write(args, plan, evaluated, metrics, values)


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
        raise UserError(f"{args.where} is not the workdir of a run: expected --dataset=NAME")
    pretrained = load_pretrained(args.where, model=args.model, revision=args.revision)
    spec = pretrained.model.spec
    if not spec.num_classes:
        raise UserError(f"{args.where} has no classification head: expected weights with classes")
    preprocess = parse_preprocess(args, pretrained.preprocess)
    smallest = min(views.scales or preprocess.size)
    if smallest < spec.min_image_size:
        raise UserError(
            f"images of {smallest} pixels are too small for the model: expected"
            f" {spec.min_image_size} or more"
        )
    config = own if own and not args.dataset else {}
    data = config.get("data", {})
    on_bad_example = args.on_bad_example or data.get("on_bad_example", "raise")
    dataset = args.dataset or config["dataset"]
    source = load_split(
        dataset,
        args.split,
        data_dir=args.data_dir or data.get("data_dir", ""),
        labels_file=args.labels_file,
        class_names=pretrained.classes,
        on_bad_example=on_bad_example,
        seed=config.get("seed", 0),
    )
    label_map = make_label_map(pretrained.classes, spec.num_classes, source, valid_labels)
    if real_labels:
        real_labels = real_labels_of(source, real_labels, args.real_labels)
    return Plan(
        pretrained,
        _selection(args.where, own is not None and not args.dataset),
        preprocess,
        dataset,
        source,
        on_bad_example,
        views,
        label_map,
        real_labels,
    )


def _own_dataset(where: str) -> dict[str, Any] | None:
    """Returns the config of the run in a workdir; None if `where` is not a workdir."""
    found = split_checkpoint(where)
    if found is None:
        return None
    try:
        config = json.loads((found[0] / "config.json").read_text())
        return {key: config[key] for key in ("dataset", "seed", "data")}
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


def run(plan: Plan, args: argparse.Namespace) -> Evaluated:
    """Computes the scores of all examples, with a progress meter."""
    classify = Classifier(
        plan.pretrained.model.spec,
        plan.pretrained.variables,
        mean=plan.preprocess.mean,
        std=plan.preprocess.std,
        dtype=args.dtype,
    )
    split = StreamingSplit(
        plan.source,
        max(plan.preprocess.size),
        plan.preprocess.channels,
        eval_transform=plan.views.transform(plan.preprocess),
        on_bad_example=plan.on_bad_example,
    )
    meter = ProgressMeter(len(split), interval=5.0, delay=5.0, silent=not is_main_process())

    def on_batch(examples: int) -> None:
        meter.update(examples, "evaluating")

    try:
        return evaluate_split(
            classify,
            split,
            plan.views,
            plan.label_map,
            batch_size=_batch_size(args.batch_size, len(split)),
            num_workers=args.num_workers,
            on_batch=on_batch,
        )
    finally:
        meter.close()


def _batch_size(requested: int, examples: int) -> int:
    """Returns the batch size: the next multiple of the number of devices of all processes."""
    devices = jax.device_count()
    return -(-min(requested, examples) // devices) * devices


def _describe(plan: Plan) -> str:
    preprocess, source = plan.preprocess, plan.source
    height, width = preprocess.size
    resize = f"{height}x{width}, crop_pct {preprocess.crop_pct:g}, {preprocess.crop_mode} crop"
    resize = f"whole images as {preprocess.channels} channels" if plan.views.scales else resize
    mean, std = (", ".join(f"{x:.4g}" for x in v) for v in (preprocess.mean, preprocess.std))
    lines = [
        f"weights: {plan.pretrained.source}",
        f"checkpoint chosen: {plan.selection}",
        f"preprocessing: {resize}, {preprocess.interpolation}, mean ({mean}), std ({std})",
        f"data: {source.name}, {len(source):,} examples of {len(plan.label_map.columns)} classes;"
        f" {plan.views}",
    ]
    if plan.views.count > 1:
        lines[-1] += f" (probabilities averaged over {plan.views.count} views)"
    return "\n".join(lines)


def _context(
    plan: Plan, args: argparse.Namespace, arguments: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Returns the entries of `evaluation.json` that say what was evaluated, and how."""
    return {
        "model": args.where,
        "source": plan.pretrained.source,
        "checkpoint_chosen": plan.selection,
        "spec": dataclasses.asdict(plan.pretrained.model.spec),
        "dataset": plan.dataset,
        "split": plan.source.name,
        "preprocess": dataclasses.asdict(plan.preprocess),
        "views": dataclasses.asdict(plan.views),
        "dtype": args.dtype,
        "arguments": list(arguments),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "platform": jax.default_backend(),
        "seconds": round(seconds, 3),
    }


def _write(
    args: argparse.Namespace,
    plan: Plan,
    evaluated: Evaluated,
    metrics: Metrics,
    values: dict[str, Any],
) -> None:
    if args.out:
        from resflax.evaluate.figures import draw_confusion, draw_reliability  # Matplotlib

        args.out.mkdir(parents=True, exist_ok=True)
        model, data = Path(args.where).name, "/".join(Path(plan.source.name).parts[-2:])
        title = f"{model} on {data}\naccuracy {metrics.accuracy:.4f}"
        draw_reliability(evaluated.scores, args.out / "reliability.png", title)
        draw_confusion(
            metrics.confusion, plan.label_map.names, args.out / "confusion.png", title
        )  # fmt: skip
        if evaluated.skipped:
            write_atomic(args.out / "skipped.txt", "\n".join([*evaluated.skipped, ""]).encode())
        text = json.dumps(values, indent=1, allow_nan=False)
        write_atomic(args.out / "evaluation.json", f"{text}\n".encode())
        print(f"saved {args.out}/evaluation.json, reliability.png and confusion.png")
    if args.predictions:
        write_predictions(args.predictions, evaluated, plan.source, plan.label_map)
        print(f"saved {args.predictions}")
