"""`resflax probe WHERE --dataset=NAME`: a logistic regression on the features of a network."""

import argparse
import dataclasses
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resflax.cli.arguments import add_reading_options, check_minimum, check_out_dir
from resflax.cli.evaluate_flags import check_image_size
from resflax.data import StreamingSplit, load_split
from resflax.data.location import FeatureKeys
from resflax.data.source import ON_BAD_EXAMPLE, Source
from resflax.errors import Parser, UserError
from resflax.evaluate.classifier import Classifier, full_batch_size
from resflax.evaluate.probe import (
    CS,
    FOLDS,
    Features,
    count_fits,
    extract_features,
    fit_probe,
    require_sklearn,
)
from resflax.files import (
    disk_errors_as_user_error,
    path_type,
    where_type,
    write_atomic,
)
from resflax.progress import ProgressMeter
from resflax.run.signals import InterruptedRunError
from resflax.runtime import enable_compilation_cache
from resflax.weights import Pretrained, load_pretrained
from resflax.weights.array_preprocess import check_takes_images
from resflax.zoo.registry import DTYPES

DESCRIPTION = f"""Fits a logistic regression (scikit-learn) to the standardized features of a
network on the training split, and prints its accuracy on the test split. The regularization is
chosen by {FOLDS}-fold cross validation on the training split: C = {", ".join(map(str, CS))}."""
DELAY = 5.0  # seconds before progress is shown


def main(arguments: list[str]) -> None:
    """Probes a network, prints the accuracy and writes `probe.json` to `--out`.

    Raises:
      UserError: if the model, the dataset or an argument is invalid; nothing is written then.
      InterruptedRunError: after Ctrl-C.
    """
    args = _parse(arguments)
    require_sklearn()
    enable_compilation_cache()
    try:
        _probe(args, arguments)
    except KeyboardInterrupt as e:
        raise InterruptedRunError(signal.SIGINT, "\nstopped: nothing was written") from e


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="resflax probe", description=DESCRIPTION)
    add = parser.add_argument
    add("where", metavar="WHERE", type=where_type, help="the model, as in resflax evaluate")
    text = "digits, a TFDS name, folder:PATH, csv:FILE or hf:PATH"
    add("--dataset", metavar="NAME", required=True, help=text)
    add("--model", metavar="NAME", help="model name of a weights file")
    add("--revision", help="branch, tag or commit of a Hub repository")
    add("--train-split", default="train", help="default: train")
    add("--split", default="", help="default: the test or validation split")
    add_reading_options(parser)
    add("--out", type=path_type, metavar="DIR", help="write probe.json to DIR")
    add("--c", type=float, metavar="C", help="inverse regularization strength; no cross validation")
    add("--batch-size", type=int, default=64, help="images per batch; default: 64")
    add("--dtype", choices=DTYPES, default="float32", help="compute dtype; default: float32")
    text = "stop at an unreadable image (default), or skip it"
    add("--on-bad-example", choices=ON_BAD_EXAMPLE, default=ON_BAD_EXAMPLE[0], help=text)
    args = parser.parse_args(arguments)
    check_minimum(args, batch_size=1, num_workers=0)
    if args.c is not None and not 0 < args.c < 1e9:
        raise UserError(f"--c is {args.c}: expected a number above 0")
    if args.out:
        check_out_dir(args.out)
    return args


def _probe(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    start = time.monotonic()
    pretrained = load_pretrained(args.where, model=args.model, revision=args.revision)
    sources = _open_sources(args)
    preprocess = pretrained.preprocess
    check_takes_images(pretrained.model.spec, preprocess, "resflax probe")
    check_image_size(preprocess.size, pretrained.model.spec)
    print(f"weights: {pretrained.source}", flush=True)
    train, test = _all_features(args, pretrained, sources)
    cs = CS if args.c is None else (args.c,)
    meter = ProgressMeter(count_fits(train.labels, cs), interval=DELAY, delay=DELAY)
    try:
        probe = fit_probe(train, test, cs=cs, on_fit=lambda: meter.update(1, "fitting"))
    finally:
        meter.close()
    chosen = f"chosen by {probe.folds}-fold cross validation" if probe.folds else "given"
    print(
        f"linear probe: accuracy {probe.accuracy:.4f} on {len(test.labels)} examples of"
        f" {sources[1].name}; fitted to {len(train.labels)} examples of {train.values.shape[1]}"
        f" features, C {probe.c:g} ({chosen})"
    )
    if not probe.converged:
        print("warning: the regression has not converged: try a smaller --c")
    if args.out:
        values = {
            "accuracy": probe.accuracy,
            "examples": len(test.labels),
            "train_examples": len(train.labels),
            "features": train.values.shape[1],
            "C": probe.c,
            "cv_accuracy": {f"{c:g}": accuracy for c, accuracy in probe.cv_accuracy.items()},
            "folds": probe.folds,
            "converged": probe.converged,
            "classes": list(sources[0].classes),
            "model": args.where,
            "source": pretrained.source,
            "dataset": args.dataset,
            "splits": [source.name for source in sources],
            "preprocess": dataclasses.asdict(preprocess),
            "arguments": list(arguments),
            "seconds": round(time.monotonic() - start, 3),
        }
        _write(args.out, values)


def _open_sources(args: argparse.Namespace) -> list[Source]:
    """Opens the training and the test split.

    Raises:
      UserError: if they cannot be opened or differ in their classes.
    """
    sources = [
        load_split(
            args.dataset,
            split,
            data_dir=args.data_dir,
            on_bad_example=args.on_bad_example,
            keys=FeatureKeys(args.image_key, args.label_key),
        )
        for split in (args.train_split, args.split)
    ]
    if sources[0].classes != sources[1].classes:
        raise UserError(
            f"{sources[0].name} and {sources[1].name} have different classes: expected the same"
        )
    return sources


def _all_features(
    args: argparse.Namespace, pretrained: Pretrained, sources: Sequence[Source]
) -> list[Features]:
    """Returns the features of each split, with a progress meter over both."""
    preprocess = pretrained.preprocess
    predict = Classifier(
        pretrained.model.spec,
        pretrained.variables,
        mean=preprocess.mean,
        std=preprocess.std,
        dtype=args.dtype,
        outputs="features",
    )
    meter = ProgressMeter(sum(map(len, sources)), interval=DELAY, delay=DELAY)
    try:
        return [
            extract_features(
                predict,
                StreamingSplit(
                    source,
                    max(preprocess.size),
                    preprocess.channels,
                    eval_transform=preprocess,
                    on_bad_example=args.on_bad_example,
                ),
                batch_size=full_batch_size(args.batch_size, len(source)),
                num_workers=args.num_workers,
                on_batch=lambda examples: meter.update(examples, "computing features"),
            )
            for source in sources
        ]
    finally:
        meter.close()


def _write(folder: Path, values: dict[str, Any]) -> None:
    with disk_errors_as_user_error("the results cannot be written", lambda: "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=1, allow_nan=False)
        write_atomic(folder / "probe.json", f"{text}\n".encode())
    print(f"saved {folder}/probe.json")
