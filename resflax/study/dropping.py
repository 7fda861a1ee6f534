"""What a trained network loses if one block is taken out at test time (Veit et al. 2016).

Every block that does not change shapes is dropped in turn, from a residual and from a plain network
of equal depth, both trained alike: x passes by it unchanged. Test error over the dropped block.
"""

import argparse
import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from resflax.cli.study import count
from resflax.data import Dataset, eval_batches, normalize
from resflax.errors import UserError
from resflax.nn.scan import parse_block_name
from resflax.plotting import line_style, new_figure, save
from resflax.study.folder import Folder
from resflax.study.nets import add_nets, open_nets
from resflax.study.recipes import recipe
from resflax.train import TrainState, make_eval_step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The depth to train, or runs to take apart."""
    parser.add_argument("--depth", type=count(20_000), default=20, help="of the form 6n+2")
    add_nets(parser, rate="0.05")


def run(args: argparse.Namespace) -> None:
    """Trains or loads the networks, drops, draws.

    Raises:
      UserError: if there is nothing to drop, or nothing to drop it from.
    """
    if args.depth < 14:
        raise UserError(f"--depth is {args.depth}: expected 14 or more, two blocks a stage")
    config = recipe(args.dataset, args.epochs, args.batch_size)
    settings = {"study": "dropping", "depth": args.depth}
    names = [f"cifar_{kind}{args.depth}" for kind in ("resnet", "plain")]
    folder, nets = open_nets(args, names, config, settings)
    found: dict[str, Any] = {}
    for name, (net, dataset) in nets.items():
        found[name] = folder.part(f"dropped-{len(found)}", partial(errors, *net, dataset))
    text = "\n".join(
        f"{name}: test error {row['whole']:.1f} % whole; with one block less"
        f" {min(row['dropped'].values()):.1f} to {max(row['dropped'].values()):.1f} %,"
        f" mean {sum(row['dropped'].values()) / len(row['dropped']):.1f} %"
        for name, row in found.items()
    )
    folder.result("dropping", {"errors": found, "text": text})
    draw(folder, found)
    print(f"{text}\nsaved in {folder.path}: dropping.png, dropping.json")


def without(model: Any, variables: Any, stage: int, block: int) -> tuple[Any, Any]:
    """The network with one block less: its later blocks of that stage move up by one."""
    depths = list(model.spec.depths)
    depths[stage - 1] -= 1
    spec = dataclasses.replace(model.spec, depths=tuple(depths))

    def moved(blocks: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for name, value in blocks.items():
            place = parse_block_name(name)
            if place is None or place[0] != stage or place[1] < block:
                out[name] = value
            elif place[1] > block:
                out[f"stage{stage}_block{place[1] - 1}"] = value
        return out

    return model.clone(spec=spec), {key: moved(tree) for key, tree in variables.items()}


def errors(model: Any, variables: Any, dataset: Dataset) -> dict[str, Any]:
    """Test error in percent, "whole" and by dropped block, "stage2_block3".

    A stage keeps one block at least.

    Raises:
      UserError: if no block can be dropped.
    """
    mean, std = dataset.train.mean_std()
    to_input = partial(normalize, mean=mean, std=std)

    @cache  # all blocks of a stage leave the same network behind: it is compiled once
    def counts(model: Any) -> Any:
        step = make_eval_step(model, normalize=to_input)
        return jax.jit(lambda variables, batch: step(_state(variables), batch)["correct"])

    def error(model: Any, variables: Any) -> float:
        batches = eval_batches(dataset.test, batch_size=256)
        right = sum(float(counts(model)(variables, batch)) for batch in batches)
        return 100 * (1 - right / len(dataset.test))

    dropped = {
        f"stage{stage}_block{block}": error(*without(model, variables, stage, block))
        for stage, depth in enumerate(model.spec.depths, start=1)
        for block in range(1, depth + 1)
        if depth > 1 and (block > 1 or not _changes_shape(model, stage))
    }
    if not dropped:
        raise UserError(f"no block can be dropped of stages of {model.spec.depths} blocks")
    return {"whole": error(model, variables), "dropped": dropped}


def _state(variables: Any) -> TrainState:
    """A state to evaluate: of what training needs it holds nothing."""
    nothing = jnp.zeros((), jnp.int32)
    return TrainState(step=nothing, seed=nothing, opt_state=(), **variables)


def _changes_shape(model: Any, stage: int) -> bool:
    """Whether the first block of the stage changes the shape of what it is given."""
    spec = model.spec
    return stage > 1 or spec.block != "basic" or spec.stem_width != spec.widths[0]


def draw(folder: Folder, found: dict[str, Any]) -> None:
    """Test error over the dropped block; thin lines: the whole networks."""
    figure, (ax,) = new_figure(1, width=7.0, height=3.8)
    for i, (name, row) in enumerate(found.items()):
        style, label = line_style(2 * i), name.removeprefix("cifar_")
        ax.plot(
            range(len(row["dropped"])), row["dropped"].values(), marker="o", label=label, **style
        )
        ax.axhline(row["whole"], linewidth=0.8, **style)
    longest = max((row["dropped"] for row in found.values()), key=len)
    ax.set_xticks(range(len(longest)), longest, rotation=60, fontsize=6, ha="right")
    ax.set(xlabel="dropped block", ylabel="test error (%)", ylim=(0, 100))
    ax.legend(frameon=False)
    save(figure, folder.path / "dropping.png")
