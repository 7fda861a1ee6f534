"""`resflax predict PATH... --weights=WHERE`: class probabilities, or features, of image files."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resflax.cli.arguments import check_distinct, check_minimum, check_output
from resflax.cli.contact_sheet import open_contact_sheet
from resflax.cli.image_outputs import (
    ImageUncertainty,
    OutputBatch,
    Prediction,
    compute_outputs,
)
from resflax.cli.output_files import (
    FEATURE_FORMATS,
    PREDICTION_FORMATS,
    open_features,
    open_predictions,
)
from resflax.data.array_files import SUFFIXES
from resflax.data.decode import BadExampleError
from resflax.data.image_files import check_images, find_images
from resflax.data.source import ON_BAD_EXAMPLE
from resflax.errors import Parser, UserError, printable
from resflax.files import path_type, where_type
from resflax.runtime import enable_compilation_cache
from resflax.weights import Weights, adapt_weights, read_ensemble
from resflax.weights.array_preprocess import check_takes_images
from resflax.weights.class_names import class_names
from resflax.weights.ensemble import describe_members

MAX_DETAILED = 10  # the table of more images has one line per image
MAX_THREADS = 1024


def main(arguments: list[str]) -> None:
    """Predicts the classes of image files, or computes their features.

    Raises:
      UserError: if an argument is invalid, or the weights, the labels or an image cannot be read.
    """
    args = _parse(arguments)
    labels = _read_labels(args.labels)
    for path in args.paths:
        if path.endswith(SUFFIXES):
            raise UserError(
                f"{path} is an array, and predict reads image files: use resflax.load_pretrained in"
                " Python, whose preprocess normalizes arrays"
            )
    paths = find_images(args.paths)
    outputs = {"--out": args.out, "--features": args.features, "--sheet": args.sheet}
    check_distinct(outputs, [*paths, args.labels])
    if args.on_bad_example == "raise":
        try:
            check_images(paths, num_threads=args.num_workers)
        except BadExampleError as e:
            raise _unreadable(e) from e
    members = [
        adapt_weights(weights)
        for weights in read_ensemble(args.weights, args.model, revision=args.revision)
    ]
    check_takes_images(members[0].config.preprocess, "resflax predict")
    _check_members(args, members)
    classes = _class_names(args, members[0], labels)
    print(describe_members(members), flush=True)
    enable_compilation_cache()
    skipped = _write_outputs(args, members, paths, classes)
    if skipped:
        print(f"skipped {len(skipped)} of {len(paths)} images:", *skipped, sep="\n  ")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="resflax predict",
        description="Predicts the classes of images: prints a table, or writes a file with --out."
        " --features writes the features before the head. An ensemble averages the probabilities"
        " of its members, and says how far they differ.",
    )
    add = parser.add_argument
    add(
        "paths",
        metavar="PATH",
        nargs="+",
        help="image files; folders, searched with their subfolders; quoted globs, in which **"
        " stands for any number of folders",
    )
    add(
        "--weights",
        metavar="WHERE",
        required=True,
        action="append",
        type=where_type,
        help="a workdir, a folder or file of weights, a Hub owner/name, or a name such as"
        " resnet50.a1_in1k; an ensemble: its workdir (runs/x, runs/x#0,2), or the option repeated",
    )
    add("--model", metavar="NAME", help="model name; default: the one saved with the weights")
    add("--revision", help="branch, tag or commit of a Hub repository")
    add(
        "--labels",
        metavar="FILE",
        type=path_type,
        help="text file with one class name per line",
    )
    add(
        "--top",
        metavar="K",
        type=int,
        default=5,
        help="classes per image; default: 5; a table of more than 10 images has one row each",
    )
    add(
        "--out",
        metavar="FILE",
        type=path_type,
        help=f"predictions: {', '.join(PREDICTION_FORMATS)}",
    )
    add(
        "--features",
        metavar="FILE",
        type=path_type,
        help=f"features: {', '.join(FEATURE_FORMATS)}",
    )
    add("--sheet", metavar="FILE", type=path_type, help="contact sheet: .png")
    add("--batch-size", metavar="N", type=int, default=32, help="images per batch; default: 32")
    threads = os.cpu_count() or 1
    text = "threads that decode images; default: the number of CPU cores"
    add("--num-workers", metavar="N", type=int, default=threads, help=text)
    text = "stop at an unreadable image (default), or skip and list it"
    add("--on-bad-example", choices=ON_BAD_EXAMPLE, default=ON_BAD_EXAMPLE[0], help=text)
    args = parser.parse_intermixed_args(arguments)
    _check_arguments(args)
    return args


def _check_arguments(args: argparse.Namespace) -> None:
    check_minimum(args, top=1, batch_size=1, num_workers=1)
    if args.num_workers > MAX_THREADS:
        raise UserError(f"--num-workers is {args.num_workers}: expected 1 to {MAX_THREADS}")
    check_output("--out", args.out, PREDICTION_FORMATS)
    check_output("--features", args.features, FEATURE_FORMATS)
    check_output("--sheet", args.sheet, (".png",))


def _read_labels(path: Path | None) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines()) if path else ()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"cannot read the labels in {path}: {reason}: expected a text file with one class name"
            " per line"
        ) from e


def _check_members(args: argparse.Namespace, members: Sequence[Weights]) -> None:
    if args.features and len(members) > 1:
        raise UserError(
            f"--features needs one network, and --weights has {len(members)}: name one, such as"
            f" --weights={members[0].where}"
        )


def _class_names(
    args: argparse.Namespace, weights: Weights, labels: Sequence[str]
) -> Sequence[str]:
    """Returns the class names, from the file of labels if there is one."""
    num_classes = weights.config.spec.num_classes
    if not num_classes and (args.out or args.sheet or not args.features):
        raise UserError(
            f"{weights.where} has no classification head: expected weights with one, or only"
            " --features=FILE"
        )
    if args.labels and len(labels) != num_classes:
        raise UserError(
            f"{args.labels} has {len(labels)} labels: expected {num_classes}, one per class"
        )
    return class_names(labels or weights.config.labels, num_classes)


def _write_outputs(
    args: argparse.Namespace,
    members: Sequence[Weights],
    paths: Sequence[str],
    classes: Sequence[str],
) -> list[BadExampleError]:
    """Writes the files, or prints the table, and returns the errors of skipped images."""
    skipped = list[BadExampleError]()

    def on_bad(error: BadExampleError) -> None:
        if args.on_bad_example == "raise":
            raise _unreadable(error) from error
        skipped.append(error)

    outputs = compute_outputs(
        members,
        paths,
        classes=classes,
        top=args.top,
        features=args.features is not None,
        batch_size=args.batch_size,
        num_threads=args.num_workers,
        on_bad=on_bad,
    )
    open_writers = _open_writers(args, paths, is_ensemble=len(members) > 1)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in open_writers]
        for batch in outputs:
            for write in writers:
                write(batch)
        if len(skipped) == len(paths):
            raise UserError(f"none of the {len(paths)} files is a readable image")
    for path in filter(None, (args.out, args.features, args.sheet)):
        print(f"wrote {path}: {len(paths) - len(skipped):,} images")
    return skipped


def _open_writers(
    args: argparse.Namespace, paths: Sequence[str], *, is_ensemble: bool
) -> Iterator[contextlib.AbstractContextManager[Callable[[OutputBatch], None]]]:
    """Yields the outputs that were asked for."""
    if args.out:
        yield open_predictions(args.out, is_ensemble=is_ensemble)
    if args.features:
        yield open_features(args.features)
    if args.sheet:
        yield open_contact_sheet(args.sheet, len(paths))
    if not (args.out or args.features):
        yield _open_table(paths)


@contextlib.contextmanager
def _open_table(paths: Sequence[str]) -> Iterator[Callable[[OutputBatch], None]]:
    """Yields a function that adds the predictions of a batch; at the end prints them."""
    width, lines = max(len(printable(path)) for path in paths), list[str]()

    def add(batch: OutputBatch) -> None:
        for path, predictions, uncertainty in zip(
            batch.paths, batch.predictions, batch.uncertainties, strict=True
        ):
            path, note = printable(path), _describe(uncertainty) if uncertainty else ""
            if len(paths) > MAX_DETAILED:
                lines.append(f"{path:{width}}  {_cell(predictions[0])}{note and f'  ({note})'}")
            else:
                lines.extend([path, *(f"  {_cell(prediction)}" for prediction in predictions)])
                lines.extend([f"  {note}"] if note else [])

    yield add
    print("\n".join(lines))


def _cell(prediction: Prediction) -> str:
    return f"{prediction.probability:7.2%}  {prediction.name}"


def _describe(uncertainty: ImageUncertainty) -> str:
    return (
        f"{uncertainty.agreeing_members} of {uncertainty.members} members agree, mutual information"
        f" {uncertainty.mutual_information:.3f} nats"
    )


def _unreadable(error: BadExampleError) -> UserError:
    return UserError(f"{error}: fix it, or skip it with --on-bad-example=skip")
