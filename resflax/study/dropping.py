"""Dropping one block of a trained network at test time (Veit et al. 2016, arXiv:1605.06431).

Trains a residual and a plain network of equal depth with the same recipe. Each block that keeps its
input's shape is dropped in turn, so that its input passes unchanged to the next block. Shows the
test error by dropped block.
"""

import argparse
import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from resflax.data import Dataset, eval_batches
from resflax.errors import UserError
from resflax.nn import ResNet
from resflax.nn.scan import parse_block_name
from resflax.plotting import line_style, new_figure, save
from resflax.study.arguments import positive_int
from resflax.study.nets import add_net_arguments, open_nets
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import StudyDir
from resflax.train import TrainState, make_eval_step
from resflax.train.builders import build_normalizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the study's options."""
    parser.add_argument(
        "--depth", type=positive_int(20_000), default=20, help="depth of the form 6n+2; default: 20"
    )
    add_net_arguments(parser, rate="0.05")


def run(args: argparse.Namespace) -> None:
    """Trains or loads the networks, drops blocks, draws the figure.

    Raises:
      UserError: if no block can be dropped, a network cannot be loaded, or the directory cannot be
        used.
    """
    if args.depth < 14:
        raise UserError(f"--depth is {args.depth}: expected 14 or more, two blocks per stage")
    config = make_recipe(args.dataset, args.epochs, args.batch_size)
    settings = {"study": "dropping", "depth": args.depth}
    names = [f"cifar_{kind}{args.depth}" for kind in ("resnet", "plain")]
    with open_nets(args, names, config, settings) as (study, nets):
        errors = {
            net.label: study.part(
                f"dropped-{i}", partial(measure_errors, net.model, net.variables, net.dataset)
            )
            for i, net in enumerate(nets)
        }
        text = "\n".join(describe(label, values) for label, values in errors.items())
        study.write_result("dropping", {"errors": errors, "text": text})
        draw(study, errors)
    print(f"{text}\nsaved in {study.path}: dropping.png, dropping.json")


def describe(label: str, errors: dict[str, Any]) -> str:
    """Describes the errors of a network.

    >>> describe("a", {"whole": 1.0, "dropped": {"stage1_block1": 2.0, "stage1_block2": 4.0}})
    'a: test error 1.0 % as trained; with one block dropped 2.0 to 4.0 %, mean 3.0 %'
    """
    dropped = errors["dropped"].values()
    return (
        f"{label}: test error {errors['whole']:.1f} % as trained; with one block dropped"
        f" {min(dropped):.1f} to {max(dropped):.1f} %, mean {sum(dropped) / len(dropped):.1f} %"
    )


def drop_block(model: ResNet, variables: Any, stage: int, block: int) -> tuple[ResNet, Any]:
    """Returns a network without the given block: later blocks of its stage are renumbered."""
    depths = list(model.spec.depths)
    depths[stage - 1] -= 1
    spec = dataclasses.replace(model.spec, depths=tuple(depths))

    def renumber(modules: dict[str, Any]) -> dict[str, Any]:
        renumbered = {}
        for name, value in modules.items():
            position = parse_block_name(name)
            if position is None or position[0] != stage or position[1] < block:
                renumbered[name] = value
            elif position[1] > block:
                renumbered[f"stage{stage}_block{position[1] - 1}"] = value
        return renumbered

    return model.clone(spec=spec), {key: renumber(tree) for key, tree in variables.items()}


def measure_errors(model: ResNet, variables: Any, dataset: Dataset) -> dict[str, Any]:
    """Returns test errors in percent: "whole", and "dropped" by block ("stage2_block3").

    The only block of a stage is not dropped.

    Raises:
      UserError: if no block can be dropped.
    """
    normalizer = build_normalizer(dataset.train)

    @cache  # networks that lack a block of the same stage are equal: compile them once
    def compile_correct(model: ResNet) -> Any:
        step = make_eval_step(model, normalize=normalizer)
        return jax.jit(lambda variables, batch: step(_eval_state(variables), batch)["correct"])

    def error(model: ResNet, variables: Any) -> float:
        batches = eval_batches(dataset.test, batch_size=256)
        correct = sum(float(compile_correct(model)(variables, batch)) for batch in batches)
        return 100 * (1 - correct / len(dataset.test))

    dropped = {
        f"stage{stage}_block{block}": error(*drop_block(model, variables, stage, block))
        for stage, depth in enumerate(model.spec.depths, start=1)
        for block in range(1, depth + 1)
        if depth > 1 and (block > 1 or not _changes_shape(model, stage))
    }
    if not dropped:
        raise UserError(
            f"no block can be dropped: the stages have {model.spec.depths} blocks, expected a stage"
            " with two or more"
        )
    return {"whole": error(model, variables), "dropped": dropped}


def _eval_state(variables: Any) -> TrainState:
    """Returns a state that can be evaluated but not trained."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, seed=zero, opt_state=(), **variables)


def _changes_shape(model: ResNet, stage: int) -> bool:
    """Returns whether the first block of a stage changes the shape of its input."""
    spec = model.spec
    return stage > 1 or spec.block != "basic" or spec.stem_width != spec.widths[0]


def draw(study: StudyDir, errors: dict[str, Any]) -> None:
    """Draws the test error by dropped block; thin lines show the networks as trained."""
    figure, (ax,) = new_figure(1, width=7.0, height=3.8)
    for i, (name, values) in enumerate(errors.items()):
        style, label = line_style(2 * i), name.removeprefix("cifar_")
        dropped = values["dropped"]
        ax.plot(range(len(dropped)), dropped.values(), marker="o", label=label, **style)
        ax.axhline(values["whole"], linewidth=0.8, **style)
    longest = max((values["dropped"] for values in errors.values()), key=len)
    ax.set_xticks(range(len(longest)), longest, rotation=60, fontsize=6, ha="right")
    ax.set(xlabel="dropped block", ylabel="test error (%)", ylim=(0, 100))
    ax.legend(frameon=False)
    save(figure, study.path / "dropping.png")
