"""Shortcut options A, B, C and none at equal depth (He et al. 2015, section 4.1, Table 3).

Compares their costs (parameters; multiply-adds, by XLA's cost analysis) and their final training
and test errors over seeds, each at its best learning rate.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resflax.kernels.backend import conv_backend
from resflax.nn import ResNet
from resflax.plotting import line_style, new_figure, save
from resflax.study.analysis import errors_at_best_rate, format_range
from resflax.study.arguments import add_training_arguments, open_dataset, positive_int
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import StudyDir
from resflax.study.sweep import train_networks
from resflax.zoo import create_model

SHORTCUT_OPTIONS = ("none", "A", "B", "C")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the study's options."""
    parser.add_argument(
        "--depth", type=positive_int(20_000), default=32, help="depth of the form 6n+2; default: 32"
    )
    add_training_arguments(parser, seeds=3, rates="0.02,0.1")


def model_cost(model: ResNet, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Returns parameters, and multiply-adds of one image's forward pass by XLA's cost analysis.

    XLA counts a multiply-add as two operations and the additions of shortcuts as one each. It
    analyzes the program for an accelerator, in which a convolution is one operation.
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
    """Trains the four networks, prints the table, draws the figure.

    Raises:
      UserError: on an invalid depth or dataset, or if the directory cannot be used.
    """
    name, rates = f"cifar_resnet{args.depth}", args.learning_rates
    create_model(name)  # reports an invalid depth before the dataset is read
    config = make_recipe(args.dataset, args.epochs, args.batch_size)
    dataset = open_dataset(args)
    settings = {
        "study": "shortcuts",
        "depth": args.depth,
        "seeds": args.seeds,
        "learning_rates": rates,
        "config": config.to_dict(),
    }
    fields: Any = {"zero_init": False, "num_classes": dataset.num_classes}
    models = {
        f"option {key}": create_model(name, shortcut=key, **fields) for key in SHORTCUT_OPTIONS
    }
    rows = {}
    with StudyDir.open(args.out, settings) as study:
        curves = train_networks(study, models, dataset, config, seeds=args.seeds, rates=rates)
        for option, (label, model) in zip(SHORTCUT_OPTIONS, models.items(), strict=True):
            unrolled = model.clone(scan=False)  # XLA counts the body of a loop once
            compute = partial(model_cost, unrolled, dataset.image_shape)
            cost = study.part(f"cost {option}", compute)
            rows[option] = cost | errors_at_best_rate(curves[label], rates)
        text = markdown_table(rows)
        study.write_result("shortcuts", {"options": rows, "table": text})
        draw(study, rows)
    print(f"{text}\nsaved in {study.path}: shortcuts.png, shortcuts.json")


def markdown_table(rows: dict[str, Any]) -> str:
    """Formats the options as a Markdown table; errors as mean and range over seeds."""
    lines = [
        "| option | parameters | multiply-adds | learning rate | training error % | test error % |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for option, row in rows.items():
        errors = " | ".join(format_range(row[key]) for key in ("train_error", "test_error"))
        lines.append(
            f"| {option} | {row['parameters']:,} | {row['multiply_adds']:,} |"
            f" {row['learning_rate']:g} | {errors} |"
        )
    return "\n".join(lines)


def draw(study: StudyDir, rows: dict[str, Any]) -> None:
    """Draws the errors, one marker per seed, and the costs relative to no shortcut."""
    figure, axes = new_figure(2, height=3.4)
    positions = range(len(rows))
    for i, split in enumerate(("train", "test")):
        for x, row in zip(positions, rows.values(), strict=True):
            errors, color = row[f"{split}_error"], line_style(2 * i)["color"]
            label = f"{split} error" if x == 0 else None
            xs = [x + 0.2 * i - 0.1] * len(errors)
            axes[0].plot(xs, errors, "os"[i], color=color, label=label, fillstyle="none")
    axes[0].set(xlabel="shortcut option", ylabel="error (%), one marker per seed", ylim=(0, None))
    axes[0].legend(frameon=False)
    base = rows[next(iter(rows))]
    for i, key in enumerate(("parameters", "multiply_adds")):
        values = [100 * (row[key] / base[key] - 1) for row in rows.values()]
        color = line_style(2 * i)["color"]
        xs = [x + 0.35 * i - 0.17 for x in positions]
        axes[1].bar(xs, values, width=0.33, color=color, label=key.replace("_", "-"))
    axes[1].set(xlabel="shortcut option", ylabel="increase over no shortcut (%)")
    axes[1].legend(frameon=False)
    for ax in axes:
        ax.set_xticks(list(positions), list(rows))
    save(figure, study.path / "shortcuts.png")
