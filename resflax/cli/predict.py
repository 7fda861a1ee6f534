"""`resflax predict PATH... --weights=WHERE`: class probabilities, or features, of files."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resflax.cli.arguments import check_distinct
from resflax.cli.contact_sheet import open_contact_sheet
from resflax.cli.image_outputs import (
    ImageUncertainty,
    OutputBatch,
    Prediction,
    compute_outputs,
)
from resflax.cli.output_files import open_features, open_predictions
from resflax.cli.predict_flags import parse
from resflax.cli.predict_inputs import Inputs, find_inputs, open_inputs, unreadable
from resflax.data.decode import BadExampleError
from resflax.errors import UserError, printable
from resflax.runtime import enable_compilation_cache
from resflax.weights import Weights, adapt_weights, read_ensemble
from resflax.weights.class_names import class_names
from resflax.weights.ensemble import describe_members

MAX_DETAILED = 10  # the table of more images has one line per image


def main(arguments: list[str]) -> None:
    """Predicts the classes of images or arrays, or computes their features.

    Raises:
      UserError: if an argument is invalid, or the weights, the labels or an image cannot be read.
    """
    args = parse(arguments)
    labels = _read_labels(args.labels)
    paths = find_inputs(args)
    outputs = {"--out": args.out, "--features": args.features, "--sheet": args.sheet}
    check_distinct(outputs, [*paths, args.labels])
    members = [
        adapt_weights(weights)
        for weights in read_ensemble(args.weights, args.model, revision=args.revision)
    ]
    inputs = open_inputs(paths, members[0], num_threads=args.num_workers)
    _check_members(args, members)
    classes = _class_names(args, members[0], labels)
    print(describe_members(members), flush=True)
    enable_compilation_cache()
    skipped = _write_outputs(args, members, inputs, classes)
    if skipped:
        print(f"skipped {len(skipped)} of {len(paths)} images:", *skipped, sep="\n  ")


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
    inputs: Inputs,
    classes: Sequence[str],
) -> list[BadExampleError]:
    """Writes the files, or prints the table, and returns the errors of skipped images."""
    skipped = list[BadExampleError]()

    def on_bad(error: BadExampleError) -> None:
        if args.on_bad_example == "raise":
            raise unreadable(error) from error
        skipped.append(error)

    outputs = compute_outputs(
        members,
        inputs,
        classes=classes,
        top=args.top,
        features=args.features is not None,
        batch_size=args.batch_size,
        on_bad=on_bad,
    )
    names = inputs.names
    open_writers = _open_writers(args, names, is_ensemble=len(members) > 1)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in open_writers]
        for batch in outputs:
            for write in writers:
                write(batch)
        if len(skipped) == len(names):
            raise UserError(f"none of the {len(names)} files is a readable image")
    for path in filter(None, (args.out, args.features, args.sheet)):
        print(f"wrote {path}: {len(names) - len(skipped):,} {inputs.noun}s")
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
