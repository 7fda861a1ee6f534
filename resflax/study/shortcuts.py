"""Shortcut options A, B, C and none at equal depth (He et al. 2015, section 4.1, Table 3).

What each costs (parameters; multiply-adds, from XLA's own analysis) and what it ends at: training
and test error over seeds, each at its best learning rate.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resflax.cli.study import add_training, count
from resflax.data import load_dataset
from resflax.kernels.backend import conv_backend
from resflax.plotting import line_style, new_figure, save
from resflax.study.analysis import at_best
from resflax.study.folder import Folder
from resflax.study.recipes import recipe
from resflax.study.sweep import train_each
from resflax.zoo import create_model

ORDER = ("none", "A", "B", "C")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The depth, and the options of training."""
    parser.add_argument("--depth", type=count(20_000), default=32, help="of the form 6n+2")
    add_training(parser, seeds=3, rates="0.02,0.1")


def cost(model: Any, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Parameters, and the multiply-adds of one image's forward pass by XLA's cost analysis.

    XLA counts a multiply-add as two operations and the additions of shortcuts as one each, on the
    program as it is lowered for an accelerator, where a convolution is one operation.
    """
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros(x.shape), train=False)
    )
    with conv_backend("xla"):
        lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, x)
    analysis: Any = lowered.cost_analysis()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {"parameters": parameters, "multiply_adds": round(analysis["flops"] / 2)}


def run(args: argparse.Namespace) -> None:
    """Trains the four networks, tabulates, draws."""
    name = f"cifar_resnet{args.depth}"
    create_model(name)
    config = recipe(args.dataset, args.epochs, args.batch_size)
    dataset = load_dataset(args.dataset, args.data_dir)
    settings = {"study": "shortcuts", "depth": args.depth, "seeds": args.seeds}
    settings |= {"learning_rates": args.learning_rates, "config": config.to_dict()}
    folder = Folder.open(args.out, settings)
    fields: Any = {"zero_init": False, "num_classes": dataset.num_classes}
    models = {f"option {key}": create_model(name, shortcut=key, **fields) for key in ORDER}
    rates = args.learning_rates
    curves = train_each(folder, models, dataset, config, seeds=args.seeds, rates=rates)
    rows = {}
    for option, (label, model) in zip(ORDER, models.items(), strict=True):
        unrolled = model.clone(scan=False)  # XLA counts the body of a loop once
        costs = folder.part(f"cost {option}", partial(cost, unrolled, dataset.image_shape))
        rows[option] = costs | at_best(curves[label], rates)
    text = table(rows)
    folder.result("shortcuts", {"options": rows, "table": text})
    draw(folder, rows)
    print(f"{text}\nsaved in {folder.path}: shortcuts.png, shortcuts.json")


def table(rows: dict[str, Any]) -> str:
    """The rows in Markdown; errors as mean and range over seeds."""
    lines = [
        "| option | parameters | multiply-adds | learning rate | training error % | test error % |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for option, row in rows.items():
        errors = " | ".join(
            f"{sum(e) / len(e):.2f} ({min(e):.2f} to {max(e):.2f})"
            for e in (row["train_error"], row["test_error"])
        )
        lines.append(
            f"| {option} | {row['parameters']:,} | {row['multiply_adds']:,} |"
            f" {row['learning_rate']:g} | {errors} |"
        )
    return "\n".join(lines)


def draw(folder: Folder, rows: dict[str, Any]) -> None:
    """Errors, one dot a seed; and costs, relative to no shortcut."""
    figure, axes = new_figure(2, height=3.4)
    at = range(len(rows))
    for i, split in enumerate(("train", "test")):
        for x, row in zip(at, rows.values(), strict=True):
            errors, color = row[f"{split}_error"], line_style(2 * i)["color"]
            label = f"{split} error" if x == 0 else None
            places = [x + 0.2 * i - 0.1] * len(errors)
            axes[0].plot(places, errors, "os"[i], color=color, label=label, fillstyle="none")
    axes[0].set(xlabel="shortcut option", ylabel="error (%), a mark for each seed", ylim=(0, None))
    axes[0].legend(frameon=False)
    base = rows[next(iter(rows))]
    for i, what in enumerate(("parameters", "multiply_adds")):
        values = [100 * (row[what] / base[what] - 1) for row in rows.values()]
        color = line_style(2 * i)["color"]
        places = [x + 0.35 * i - 0.17 for x in at]
        axes[1].bar(places, values, width=0.33, color=color, label=what.replace("_", "-"))
    axes[1].set(xlabel="shortcut option", ylabel="more than without shortcuts (%)")
    axes[1].legend(frameon=False)
    for ax in axes:
        ax.set_xticks(list(at), list(rows))
    save(figure, folder.path / "shortcuts.png")
