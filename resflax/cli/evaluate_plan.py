"""Everything that `resflax evaluate` needs: the members, the examples, and how they fit."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from resflax.cli.evaluate_corruptions import (
    CorruptionPlan,
    parse_ood_corruptions,
    plan_corruptions,
)
from resflax.cli.evaluate_data import (
    HeldOutData,
    open_held_out,
    open_ood,
    without_held_out_examples,
)
from resflax.cli.evaluate_flags import check_image_size
from resflax.cli.evaluate_members import Members, read_evaluated_members
from resflax.cli.run_data import find_training_split, open_source, own_config
from resflax.data.source import Source
from resflax.data.split_names import role_of_split
from resflax.data.splits import HELD_OUT
from resflax.errors import UserError
from resflax.evaluate.calibrated import MAX_KEPT_BYTES
from resflax.evaluate.classes import (
    LabelMap,
    make_label_map,
    read_real_labels,
    read_valid_labels,
    real_labels_of,
)
from resflax.evaluate.corruptions import Condition
from resflax.evaluate.deep_ensemble import Reference, read_reference
from resflax.evaluate.views import Views
from resflax.weights import Preprocess, Weights
from resflax.weights.array_preprocess import ArrayPreprocess
from resflax.weights.workdirs import BEST, split_checkpoint

CHECKED_IMAGES = 16  # whose shapes tell whether ten crops differ


class Plan(NamedTuple):
    """Everything that an evaluation needs, checked before anything is computed.

    Attributes:
      members: the networks, or samples of one.
      selection: one line that says by which split the checkpoints were chosen.
      dataset: name of the dataset.
      source: the examples.
      on_bad_example: "raise" or "skip".
      dtype: compute dtype: by default that of the run if its own dataset is evaluated.
      views: the views of each image.
      label_map: the classes that count.
      real_labels: ReaL labels of each example; empty without them.
      held_out: examples that were not trained on, for calibration and selection; None without.
      cross_validate: whether to calibrate on halves of the split.
      ood: other datasets, by name.
      ood_corruptions: corruptions of the split to detect, by name.
      reference: a deep ensemble to compare with; None without.
      corruptions: the corruptions to evaluate.
    """

    members: Members
    selection: str
    dataset: str
    source: Source
    on_bad_example: str
    dtype: str
    views: Views
    label_map: LabelMap
    real_labels: list[list[int]]
    held_out: HeldOutData | None
    cross_validate: bool
    ood: dict[str, Source]
    ood_corruptions: dict[str, Condition]
    reference: Reference | None
    corruptions: CorruptionPlan

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the first member; others can differ in `mean` and `std`."""
        return self.members.networks[0].config.preprocess


def make_plan(args: argparse.Namespace) -> Plan:
    """Loads the members and opens the datasets, and checks that they fit.

    Raises:
      UserError: if something is invalid.
    """
    valid_labels = read_valid_labels(args.valid_labels) if args.valid_labels else ()
    real_labels = read_real_labels(args.real_labels) if args.real_labels else []
    reference = read_reference(args.deep_ensemble) if args.deep_ensemble else None
    config = own_config(args.where, args.dataset)
    if not args.dataset and not config:
        raise _missing_dataset(args.where)
    # Ten crops have mirrors of their own.
    own_tta = config.get("eval_tta", "none") if args.crops == 1 else "none"
    views = Views(args.tta or own_tta, args.crops, args.scales)
    members = read_evaluated_members(args)
    networks, first = members.networks, members.networks[0].config
    for network in networks:
        check_image_size(views.scales or first.preprocess.sides, network.config.spec)
    if isinstance(first.preprocess, ArrayPreprocess):
        _check_array_options(args, networks[0].where)
    on_bad_example = args.on_bad_example or config.get("data", {}).get("on_bad_example", "raise")
    training = find_training_split(args.where, args.data_dir, config.get("dataset", ""))
    source = open_source(
        args,
        config,
        on_bad_example,
        labels_file=args.labels_file,
        class_names=first.labels,
        num_classes=first.spec.num_classes,
    )
    source = without_held_out_examples(args, source, training)
    if isinstance(first.preprocess, Preprocess):
        _check_crops(args, first.preprocess, source)
    if reference and reference.split != source.name:
        raise UserError(
            f"{reference.name} is of {reference.split}, not of {source.name}: expected the"
            " evaluation of a deep ensemble on the same split"
        )
    label_map = make_label_map(first.labels, first.spec.num_classes, source, valid_labels)
    held_out = open_held_out(args, training, networks, valid_labels)
    cross_validate = _cross_validates(args, held_out, len(members.names), label_map, len(source))
    return Plan(
        members=members,
        selection=_selection(args, networks, bool(config)),
        dataset=args.dataset or config["dataset"],
        source=source,
        on_bad_example=on_bad_example,
        dtype=args.dtype or config.get("dtype", "float32"),
        views=views,
        label_map=label_map,
        real_labels=real_labels and real_labels_of(source, real_labels, args.real_labels),
        held_out=held_out,
        cross_validate=cross_validate,
        ood=open_ood(args),
        ood_corruptions=parse_ood_corruptions(args, first.preprocess.channels),
        reference=reference,
        corruptions=plan_corruptions(args, first.preprocess.channels),
    )


def _check_crops(args: argparse.Namespace, preprocess: Preprocess, source: Source) -> None:
    """Raises `UserError` if all crops of an image would be the same, by a few images."""
    side, shapes = min(preprocess.size), []
    if args.crops == 1 or int(side / preprocess.crop_pct) > side:
        return
    with contextlib.suppress(UserError):  # an image that cannot be read is reported later
        shapes = [source.read(index)[0].shape for index in range(min(CHECKED_IMAGES, len(source)))]
    if preprocess.crop_mode == "squash" or all(shape[0] == shape[1] for shape in shapes):
        raise UserError(
            f"--crops={args.crops} with crop_pct {preprocess.crop_pct:g}: the resized images have"
            " the size of a crop: give a smaller one, such as --crop-pct=0.875"
        )


def _check_array_options(args: argparse.Namespace, where: str) -> None:
    """Raises `UserError` if an option needs images, and the network takes other arrays."""
    options = {
        "--tta": (args.tta or "none") != "none",
        "--crops": args.crops != 1,
        "--scales": bool(args.scales),
        "--test-pool": args.test_pool,
        "--corruptions": bool(args.corruptions),
    }
    for option, is_given in options.items():
        if is_given:
            raise UserError(
                f"{option} changes uint8 images, and {where} was trained on other arrays:"
                " leave it out"
            )


def _missing_dataset(wheres: list[str]) -> UserError:
    where = wheres[0]
    if len(wheres) > 1 and all(split_checkpoint(name) for name in wheres):
        return UserError("the runs were trained on different datasets: expected --dataset=NAME")
    where = next((name for name in wheres if not split_checkpoint(name)), where)
    return UserError(
        f"{where} is not the workdir of a run, whose dataset is known: expected --dataset=NAME"
        if Path(where).exists()
        else f"{where} does not exist here: expected the workdir of a run, or --dataset=NAME with"
        " a model of the Hub"
    )


def _cross_validates(
    args: argparse.Namespace,
    held_out: HeldOutData | None,
    members: int,
    label_map: LabelMap,
    examples: int,
) -> bool:
    """Returns whether to calibrate on halves of the split.

    Raises:
      UserError: if it takes too much memory and was asked for.
    """
    if held_out or args.calibrate == "none":
        return False
    size = 4 * members * examples * len(label_map.columns)
    if size <= MAX_KEPT_BYTES and examples > 1:
        return True
    if args.calibrate == "test" or args.conformal or args.deep_ensemble:
        raise UserError(
            f"calibration on halves of {examples:,} examples keeps {size / 2**30:.1f} GiB of"
            f" predictions: expected 2 examples or more, and at most {MAX_KEPT_BYTES / 2**30:g}"
            " GiB; train with --config.data.validation=0.1 to hold out training data"
        )
    return False


def _selection(args: argparse.Namespace, networks: Sequence[Weights], is_own: bool) -> str:
    """Returns by which split the checkpoints were chosen; `is_own`: their own dataset."""
    keys = {key for network in networks for key in network.evaluation}
    by = "validation" if any("validation_" in key for key in keys) else "test"
    evaluated = "validation" if args.split == HELD_OUT else role_of_split(args.split) or "test"
    is_seen = is_own and by in ("test", evaluated)
    return "; ".join(dict.fromkeys(_selection_of(where, by, is_seen) for where in args.where))


def _selection_of(where: str, by: str, is_seen: bool) -> str:
    found = split_checkpoint(where)
    if found is None:
        return "not known for these weights"
    if found.checkpoint != BEST:
        return f"by its position in the run ({found.checkpoint}), not by a split"
    optimistic = ", so the results below are optimistic" if is_seen else ""
    return f"by the accuracy on the run's own {by} split{optimistic}"


def describe(plan: Plan) -> str:
    """Returns lines with the weights, the checkpoint, the preprocessing, the data and views."""
    preprocess, source = plan.preprocess, plan.source
    height, width = preprocess.size
    resize = f"{height}x{width}, crop_pct {preprocess.crop_pct:g}, {preprocess.crop_mode} crop"
    resize = "whole images" if plan.views.scales else resize
    resize = f"{resize}, {preprocess.interpolation}"
    if isinstance(preprocess, ArrayPreprocess):
        resize = f"{preprocess.dtype} arrays of shape {(*preprocess.space, preprocess.channels)}"
    normalization = " and ".join(dict.fromkeys(map(_normalization, plan.members.networks)))
    lines = [
        f"weights: {plan.members.describe()}",
        *([f"checkpoint: {steps}"] if (steps := plan.members.describe_steps()) else []),
        f"checkpoint chosen: {plan.selection}",
        f"preprocessing: {resize}, {normalization}",
        f"data: {source.name}, {len(source):,} examples of {len(plan.label_map.columns)} classes;"
        f" {plan.views}; {plan.dtype}",
    ]
    if plan.views.count > 1:
        lines[-1] += f" (probabilities averaged over {plan.views.count} views)"
    if plan.members.test_pool:
        lines[-1] += "; test-time pooling"
    if plan.held_out:
        held_out = plan.held_out.source
        lines.append(f"calibration data: {held_out.name}, {len(held_out):,} examples")
    return "\n".join(lines)


def _normalization(network: Weights) -> str:
    preprocess = network.config.preprocess
    mean, std = (", ".join(f"{x:.4g}" for x in v) for v in (preprocess.mean, preprocess.std))
    return f"mean ({mean}), std ({std})"
