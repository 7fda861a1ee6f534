"""`resflax export WHERE... OUT`: a trained model as a folder for torch, as ONNX or StableHLO."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from resflax.errors import Parser, UserError
from resflax.export import FORMATS, ExportOptions, export
from resflax.export.formats import format_of
from resflax.export.push import check_repository, push
from resflax.export.trained_model import RunRecord, load_trained_model
from resflax.files import where_type
from resflax.run.config_diff import flatten_config


def main(arguments: list[str]) -> None:
    """Exports a model, verifies the result, and optionally uploads it.

    Raises:
      UserError: if the model cannot be loaded, the format cannot have it, the outputs differ, or
        the files cannot be written or uploaded.
    """
    args = _parser().parse_args(arguments)
    name = format_of(Path(args.out), args.format)
    if args.push:
        check_repository(args.push)
        if not FORMATS[name].files:
            raise UserError(f"--push uploads a folder: --format={name} writes a file, use timm")
    model = load_trained_model(args.where, args.model, revision=args.revision)
    options = ExportOptions(
        uint8=args.uint8,
        fold=args.fold,
        opset=args.opset,
        symbolic=args.symbolic,
        license=args.license,
        train_command=training_command(model.run) if FORMATS[name].files else "",
    )
    report = export(model, args.out, format=name, options=options, images=args.images)
    print(f"exported {model.source}")
    for line in (*report.verifications, *report.notes):
        print(line)
    print(f"wrote {report.path} ({report.format}, {report.size / 1e6:.1f} MB)")
    if args.push:
        print(f"uploaded to {push(report.path, args.push)}")


def _parser() -> Parser:
    parser = Parser(
        prog="resflax export",
        description="Exports a trained model, and verifies that the result computes the same.",
    )
    parser.add_argument(
        "where",
        metavar="WHERE",
        nargs="+",
        type=where_type,
        help="a workdir, a folder, a file, or a Hub owner/name; an ensemble (a workdir of several"
        " networks, or several WHEREs) returns the mean of the probabilities",
    )
    text = "a new folder, or a file"
    parser.add_argument("out", metavar="OUT", type=where_type, help=text)
    parser.add_argument(
        "--format", help=f"{', '.join(FORMATS)}; default: by OUT's suffix, timm for a folder"
    )
    parser.add_argument("--model", metavar="NAME", help="model name, for weights without a config")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument(
        "--uint8",
        action="store_true",
        help="take raw uint8 NHWC pixels and return probabilities (files only)",
    )
    parser.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fold batch norm into the convolutions (files only)",
    )
    parser.add_argument("--opset", type=int, help="ONNX opset")
    text = "take inputs of any height and width, or length or depth (stablehlo only)"
    parser.add_argument("--symbolic", action="store_true", help=text)
    parser.add_argument(
        "--images", metavar="FILE", nargs="+", default=(), help="verify on these instead of noise"
    )
    parser.add_argument("--license", default="", help="license of the weights, for the model card")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder to the Hugging Face Hub"
    )
    return parser


def training_command(run: RunRecord | None) -> str:
    """Returns the command that repeats a run: the default recipe with the keys that differ."""
    if run is None or not run.config:
        return ""
    from resflax.cli.flags import DEFAULT_RECIPE, parse
    from resflax.train.config import to_json_dict

    recipe = flatten_config(to_json_dict(parse([]).config))
    changed = {
        key: value
        for key, value in flatten_config(run.config).items()
        if recipe.get(key) != value and value is not None
    }
    flags = [f"--config.{key}={_flag(value)}" for key, value in changed.items()]
    words = [f"--config={DEFAULT_RECIPE}", *flags, f"--workdir={run.workdir}"]
    return " \\\n    ".join(["resflax train", *map(shlex.quote, words)])


def _flag(value: Any) -> str:
    """Returns a config value as its flag takes it."""
    if isinstance(value, list):
        return repr(tuple(tuple(item) if isinstance(item, list) else item for item in value))
    return str(value)
