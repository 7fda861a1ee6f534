"""Flags of `resflax evaluate`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from resflax.cli import evaluate_corruptions
from resflax.cli.arguments import (
    add_process_options,
    add_reading_options,
    check_can_create,
    check_distinct,
    check_minimum,
    check_out_dir,
    process_config,
)
from resflax.data.eval_transform import INTERPOLATIONS
from resflax.data.source import ON_BAD_EXAMPLE
from resflax.data.views import TTA
from resflax.errors import Parser, UserError
from resflax.evaluate.predictions import check_predictions_path
from resflax.evaluate.views import CROPS
from resflax.files import path_type, where_type
from resflax.nn import Spec
from resflax.weights import Preprocess
from resflax.zoo.registry import DTYPES

DESCRIPTION = """Evaluates a trained network or an ensemble: accuracy, calibration, uncertainty.

WHERE is the workdir of a run (runs/x, runs/x@best, runs/x@200), a folder in timm's or
Transformers' layout, a weights file (with --model), owner/name of the Hub, or a tagged timm name
(resnet50.a1_in1k). Workdirs are evaluated on the test split of their own dataset by default.
The run of an ensemble means all its members, runs/x#2 or runs/x#0,2 some of them, and several WHERE
are the members of one ensemble, whose probabilities are averaged."""

DATASETS = """datasets:
  digits, fashion_mnist, imagenet2012, ...  the included digits, or a prepared TFDS dataset
  folder:PATH                    PATH/test/CLASS/*.jpg, PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg
  csv:FILE, hf:PATH              a table of paths and labels; a Hugging Face dataset on disk
  folder:PATH --labels-file=FILE PATH/*.jpg with labels in a file: one 0-based index, synset or
                                 class name per line, in the order of the sorted file names; a CSV
                                 with the columns path,label; or the development kit's
                                 ILSVRC2012_validation_ground_truth.txt (IDs from 1 to 1000)
Options of all commands can be spelled with - or _."""


# The first is held-out training data if there are any, else halves of the split.
CALIBRATE = ("auto", "held-out", "test", "none")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a command line and checks what needs neither the model nor the dataset.

    Raises:
      UserError: if it is invalid.
    """
    evaluate_corruptions.check_order(arguments)
    args = _parser().parse_intermixed_args(arguments)
    args.scales = _parse_numbers("--scales", args.scales, int)
    args.distributed_config = process_config(args)
    check_minimum(args, batch_size=1, num_workers=0)
    _check_uncertainty(args)
    evaluate_corruptions.check_flags(args)
    _check_outputs(args)
    return args


def _check_uncertainty(args: argparse.Namespace) -> None:
    if args.conformal is not None and not 0 < args.conformal < 1:
        raise UserError(f"--conformal is {args.conformal:g}: expected a number between 0 and 1")
    if args.select is not None and args.select < 1:
        raise UserError(f"--select is {args.select}: expected the number of members, 1 or more")
    if args.select and args.calibrate in ("test", "none"):
        raise UserError(
            f"--select needs held-out training data, not --calibrate={args.calibrate}: expected"
            " --calibrate=held-out"
        )
    if args.calibrate == "none" and (args.conformal or args.deep_ensemble):
        option = "--conformal" if args.conformal else "--deep-ensemble"
        raise UserError(f"{option} needs calibration: expected no --calibrate=none with it")
    if args.mc_dropout is not None and args.mc_dropout < 2:
        raise UserError(f"--mc-dropout is {args.mc_dropout}: expected the number of samples, >= 2")
    if args.mc_dropout and args.select:
        raise UserError(
            "--select chooses networks, and --mc-dropout takes samples of one: expected one of them"
        )
    if args.test_pool and (args.mc_dropout or args.scales):
        option = "--mc-dropout" if args.mc_dropout else "--scales"
        raise UserError(f"--test-pool and {option} are both given: expected one of them")
    if "" in args.ood:
        raise UserError("--ood is '': expected the name of a dataset, such as folder:PATH")
    if len(set(args.ood)) < len(args.ood):
        raise UserError("--ood has a dataset twice: expected different ones")


def _parser() -> Parser:
    parser = Parser(
        prog="resflax evaluate",
        description=DESCRIPTION,
        epilog=DATASETS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_inputs(parser)
    _add_outputs(parser)
    _add_views(parser)
    _add_uncertainty(parser)
    evaluate_corruptions.add_flags(parser)
    _add_preprocessing(parser)
    _add_execution(parser)
    return parser


def _add_inputs(parser: Parser) -> None:
    add = parser.add_argument
    text = "the model, or the members of an ensemble"
    add("where", metavar="WHERE", nargs="+", type=where_type, help=text)
    add("--model", metavar="NAME", help="model name of a weights file")
    add("--revision", help="branch, tag or commit of a Hub repository")
    add("--dataset", default="", metavar="NAME", help="default: the dataset of the run")
    text = "a split, a TFDS split expression, or what a run used its data for: train, validation,"
    text += " test or held-out; default: the test or validation split"
    add("--split", default="", help=text)
    add_reading_options(parser)
    text = "labels of images without class folders"
    add("--labels-file", default="", metavar="FILE", type=where_type, help=text)


def _add_outputs(parser: Parser) -> None:
    add = parser.add_argument
    add("--out", type=path_type, metavar="DIR", help="write evaluation.json and figures to DIR")
    text = "write each prediction: .csv or .parquet"
    add("--predictions", type=path_type, metavar="FILE", help=text)
    text = "evaluate on these classes only: one index, name or synset per line"
    add("--valid-labels", type=path_type, metavar="FILE", help=text)
    text = "also report ReaL accuracy: JSON list of the lists of correct labels"
    add("--real-labels", type=path_type, metavar="FILE", help=text)


def _add_views(parser: Parser) -> None:
    add = parser.add_argument
    text = (
        "flip: average the probabilities of the image and its mirror image; flip_shift: also of"
        " both shifted by a pixel in two directions; default: as the run, or none"
    )
    add("--tta", choices=TTA, help=text)
    text = "10: average the probabilities of the corners, the center and their mirrors"
    add("--crops", type=int, choices=CROPS, default=1, help=text)
    text = "average the probabilities of whole images with these shorter sides"
    add("--scales", default="", metavar="N,N,...", help=text)
    text = "for images larger than those of a run's training, or than the model's own input size:"
    text += " classify each window of the feature map that has that size, and take half the mean"
    text += " plus half the maximum of the logits"
    add("--test-pool", action="store_true", help=text)


def _add_preprocessing(parser: Parser) -> None:
    add = parser.add_argument_group("preprocessing; default: the model's own").add_argument
    add("--size", metavar="N or HxW", help="side of the network's input")
    add("--crop-pct", type=float, help="side of the crop / resized image")
    add("--interpolation", choices=tuple(INTERPOLATIONS))
    add("--mean", metavar="X,X,X", help="of pixel values from 0 to 1")
    add("--std", metavar="X,X,X")


def _add_execution(parser: Parser) -> None:
    add = parser.add_argument
    add("--batch-size", type=int, default=64, help="images per batch of all devices; default: 64")
    text = "compute dtype; default: that of the run on its own dataset, else float32"
    add("--dtype", choices=DTYPES, default="", help=text)
    text = "skip: count unreadable images instead of stopping"
    add("--on-bad-example", choices=ON_BAD_EXAMPLE, default="", help=text)
    add_process_options(parser)


def _add_uncertainty(parser: Parser) -> None:
    group = parser.add_argument_group("calibration and uncertainty, see docs/ensembles.md")
    add = group.add_argument
    add(
        "--calibrate",
        choices=CALIBRATE,
        default=CALIBRATE[0],
        help="data for temperature scaling: training data held out by config.data.validation, or"
        " halves of the split, each for the other; default: the first if there are any",
    )
    add(
        "--conformal",
        type=float,
        metavar="ALPHA",
        help="also report conformal sets, which miss the label with probability ALPHA",
    )
    add(
        "--ood",
        action="append",
        default=[],
        metavar="NAME",
        help="detect the images of this dataset; can be repeated",
    )
    add(
        "--select",
        type=int,
        metavar="K",
        help="select K members greedily on held-out training data",
    )
    add(
        "--mc-dropout",
        type=int,
        metavar="S",
        help="evaluate S samples of one network with its dropout and drop path as an ensemble",
    )
    add(
        "--deep-ensemble",
        type=path_type,
        metavar="FILE",
        help="evaluation.json of an ensemble: how many of its members are as good",
    )


def _parse_numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    """Parses numbers separated by commas.

    Raises:
      UserError: if one is not a number of this kind.
    """
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as e:
        name = "integers" if kind is int else "numbers"
        raise UserError(f"{option} is {text!r}: expected {name} separated by commas") from e


def parse_preprocess(args: argparse.Namespace, preprocess: Preprocess) -> Preprocess:
    """Returns the model's preprocessing with the values of the command line.

    Raises:
      UserError: if a value is invalid.
    """
    values: dict[str, Any] = {}
    if args.size:
        sides = args.size.split("x")
        if not all(side.isdecimal() for side in sides) or len(sides) > 2:
            raise UserError(f"--size is {args.size!r}: expected N or HEIGHTxWIDTH, in pixels")
        values["size"] = (int(sides[0]), int(sides[-1]))
    for name in ("crop_pct", "interpolation"):
        if getattr(args, name) is not None:
            values[name] = getattr(args, name)
    for name in ("mean", "std"):
        numbers = _parse_numbers(f"--{name}", getattr(args, name) or "", float)
        if len(numbers) not in (0, preprocess.channels):
            raise UserError(
                f"--{name} has {len(numbers)} numbers: expected one for each of the"
                f" {preprocess.channels} channels of the model"
            )
        if numbers:
            values[name] = numbers
    return replace(preprocess, **values)


def check_image_size(sides: Sequence[int], spec: Spec) -> None:
    """Raises `UserError` if images with these sides are too small for a network."""
    if min(sides) < spec.min_image_size:
        raise UserError(
            f"images of {min(sides)} pixels are too small for the model: expected"
            f" {spec.min_image_size} or more"
        )


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises `UserError` if an output cannot be written, before anything is computed."""
    if args.out:
        check_out_dir(args.out)
    inputs = (args.labels_file, args.valid_labels, args.real_labels)
    check_distinct({"--predictions": args.predictions}, inputs)
    if args.predictions:
        check_predictions_path(args.predictions)
        check_can_create("--predictions", args.predictions, args.predictions.absolute().parent)
