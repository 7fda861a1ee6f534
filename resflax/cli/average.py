"""`resflax average WHERE... --out=FOLDER`: the mean of the parameters of several networks."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from resflax.cli.arguments import add_reading_options, check_minimum
from resflax.cli.export import training_command
from resflax.cli.run_data import have_different_training_data, open_source, own_config
from resflax.data import StreamingSplit
from resflax.data.batches import eval_batches
from resflax.data.held_out import SourceSubset
from resflax.data.source import ON_BAD_EXAMPLE, Source
from resflax.errors import Parser, UserError, print_to_stderr
from resflax.export import FORMATS, ExportOptions, export
from resflax.export.exporter import check_target
from resflax.export.trained_model import TrainedModel, read_run_record
from resflax.files import path_type, where_type
from resflax.progress import progress_range
from resflax.runtime import enable_compilation_cache
from resflax.train.precise_bn import recompute_batch_stats
from resflax.weights import Preprocess, Weights, adapt_weights, read_ensemble
from resflax.weights.array_preprocess import check_takes_images
from resflax.weights.average import (
    average_weights,
    check_same_origin,
    have_same_batch_stats,
)
from resflax.zoo import create_model

DESCRIPTION = """Averages the parameters of several networks: the last checkpoints of a run
(stochastic weight averaging), the members of an ensemble with share_init, or several models that
were trained from the same weights. The batch statistics are computed for the average, on training
data. The result is a folder in timm's layout, which every command reads. Networks that were trained
from different initial parameters have no useful average: evaluate them as an ensemble."""
EPILOG = """examples:
  resflax average runs/x@last:3 --out=runs/x-average
  resflax average runs/x@100,200,300 --out=runs/x-average
  resflax average a/model.safetensors b/model.safetensors --dataset=cifar10 --out=average"""


def main(arguments: list[str]) -> None:
    """Averages networks, recomputes the batch statistics and writes the model to `--out`.

    Raises:
      UserError: if the models, the dataset or an argument is invalid; nothing is written then.
    """
    args = _parse(arguments)
    check_target(args.out, FORMATS["timm"])
    enable_compilation_cache()
    networks = [adapt_weights(w) for w in read_ensemble(args.where, args.model)]
    if not networks[0].config.spec.num_classes:
        raise UserError(f"{networks[0].where} has no classification head: expected classes")
    if warning := check_same_origin(networks):
        print_to_stderr(warning)
    average = average_weights(networks)
    print(average.source, flush=True)
    if have_same_batch_stats(networks):
        print("batch statistics: none, or the same in all networks, and kept")
    else:
        average = _with_own_batch_stats(average, args)
    record = read_run_record(networks, whole=False)
    model = TrainedModel(average.config, average.variables, average.source, record)
    options = ExportOptions(license=args.license, train_command=training_command(record))
    report = export(model, args.out, format="timm", options=options)
    for line in (*report.verifications, *report.notes):
        print(line)
    print(f"wrote {report.path} ({report.size / 1e6:.1f} MB)")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="resflax average",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    text = "two networks or more, as in resflax evaluate"
    add("where", metavar="WHERE", nargs="+", type=where_type, help=text)
    add("--out", type=path_type, metavar="FOLDER", required=True, help="a new folder")
    add("--model", metavar="NAME", help="model name of weights files")
    add("--dataset", default="", metavar="NAME", help="default: the dataset of the runs")
    add("--split", default="train", help="split for the batch statistics; default: train")
    add_reading_options(parser)
    text = "random images for the batch statistics, 1 to all; default: 4096"
    add("--images", type=int, default=4096, help=text)
    add("--batch-size", type=int, default=128, help="images per batch; default: 128")
    text = "stop at an unreadable image, or skip it; default: as the run"
    add("--on-bad-example", choices=ON_BAD_EXAMPLE, default="", help=text)
    add("--license", default="", help="license of the weights, for the model card")
    args = parser.parse_args(arguments)
    check_minimum(args, images=2, batch_size=2, num_workers=0)
    return args


def _with_own_batch_stats(average: Weights, args: argparse.Namespace) -> Weights:
    """Returns the average with batch statistics recomputed on images as for evaluation."""
    split, preprocess = _open_split(args, average), average.config.preprocess
    size = min(args.batch_size, len(split))
    count = max(1, min(args.images, len(split)) // size)
    order = np.random.default_rng(0).permutation(len(split))[: count * size]
    split.source = SourceSubset(split.source, order, split.source.name)
    variables = recompute_batch_stats(
        create_model(average.config.spec, scan=False),
        average.variables,
        _normalized_batches(split, preprocess, size, count, args.num_workers),
    )
    print(
        f"batch statistics: of {len(order):,} images of {split.source.name}, in {count} batches of"
        f" {size}"
    )
    return average._replace(variables=jax.tree.map(np.asarray, variables))


def _normalized_batches(
    split: StreamingSplit, preprocess: Preprocess, size: int, count: int, num_workers: int
) -> Iterator[Float[Array, "batch height width channels"]]:
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    batches = eval_batches(split, batch_size=size, num_workers=num_workers)
    for _, batch in zip(progress_range(count, "batch statistics"), batches, strict=True):
        yield jnp.asarray((batch["image"].astype(np.float32) / 255 - mean) / std)


def _open_split(args: argparse.Namespace, average: Weights) -> StreamingSplit:
    """Opens the training images, without those that the runs held out.

    Raises:
      UserError: if no dataset is given or known, it cannot be opened, or it is too small; or if
        the runs held out different examples.
    """
    check_takes_images(average.config.spec, average.config.preprocess, "resflax average")
    config = own_config(args.where, args.dataset)
    if not args.dataset and not config.get("dataset"):
        raise UserError(
            "the batch statistics need training data, and the networks are not from runs with one"
            " dataset: expected --dataset=NAME"
        )
    data = config.get("data", {})
    on_bad_example = args.on_bad_example or data.get("on_bad_example", "raise")
    preprocess = average.config.preprocess
    split = StreamingSplit(
        _open_source(args, config, on_bad_example),
        max(preprocess.size),
        preprocess.channels,
        eval_transform=preprocess,
        on_bad_example=on_bad_example,
    )
    if len(split) < 2:
        raise UserError(f"{split.source.name} has {len(split)} examples: expected 2 or more")
    return split


def _open_source(args: argparse.Namespace, config: dict[str, Any], on_bad_example: str) -> Source:
    """Opens the split; `config` is that of the runs if it is their dataset, else {}."""
    is_own = config and args.split == "train"
    if is_own and have_different_training_data(args.where, args.data_dir):
        raise UserError(
            "the runs held out different examples, so that their training data differ: expected"
            " runs with the same config.data, or another --dataset or --split"
        )
    return open_source(args, config, on_bad_example)
