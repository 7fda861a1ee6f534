"""Deeper plain networks train worse, deeper residual ones do not (He et al. 2015, Figures 1 and 6).

Trains plain and residual networks of equal depth and parameter count (option A adds none) in the
same way, over several seeds and learning rates, and shows each at its best learning rate.
"""

import argparse
from typing import Any

from resflax.cli.study import add_training, numbers
from resflax.data import load_dataset
from resflax.errors import UserError
from resflax.plotting import legend_above, line_style, mean_and_range, new_figure, save
from resflax.study.analysis import at_best, best_rate, rise, sentence, verdict
from resflax.study.folder import Folder
from resflax.study.recipes import recipe
from resflax.study.sweep import train_each
from resflax.zoo import create_model

KINDS = {"plain": "cifar_plain", "residual": "cifar_resnet"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Depths, and the options of training."""
    parser.add_argument(
        "--depths", type=numbers(int, 8, 20_000), default="20,32,56", help="of the form 6n+2"
    )
    add_training(parser, seeds=3, rates="0.02,0.1")


def run(args: argparse.Namespace) -> None:
    """Trains what is not trained yet, judges, draws.

    Raises:
      UserError: on names, depths or places that cannot be.
    """
    if len(args.depths) < 2:
        raise UserError(f"--depths has {args.depths}: expected two or more, to compare")
    depths = sorted(args.depths)
    names = [f"{prefix}{depth}" for prefix in KINDS.values() for depth in depths]
    for name in names:
        create_model(name)  # names that cannot be end here, before any data is read
    config = recipe(args.dataset, args.epochs, args.batch_size)
    dataset = load_dataset(args.dataset, args.data_dir)
    settings = {
        "study": "degradation",
        "depths": depths,
        "seeds": args.seeds,
        "learning_rates": args.learning_rates,
        "config": config.to_dict(),
    }
    folder = Folder.open(args.out, settings)
    # Both kinds must begin alike: no branch of the residual net is started at zero.
    fields: Any = {"zero_init": False, "num_classes": dataset.num_classes}
    models = {name: create_model(name, **fields) for name in names}
    rates = args.learning_rates
    curves = train_each(folder, models, dataset, config, seeds=args.seeds, rates=rates)
    result = judge(curves, depths, rates) | {"curves": curves}
    folder.result("degradation", result)
    draw(folder, curves, depths, result)
    print(result["text"])
    print(f"saved in {folder.path}: degradation.png, degradation_rates.png, degradation.json")


def judge(curves: dict[str, Any], depths: list[int], rates: list[float]) -> dict[str, Any]:
    """The final errors of every network at its best rate, and the verdict from these alone."""
    networks: dict[str, Any] = {}
    for name, curve in curves.items():
        of_rates = [[seed[-1] for seed in of_rate] for of_rate in curve["train"]]
        networks[name] = at_best(curve, rates) | {"train_error_by_rate": of_rates}
    rises = {}
    for kind, prefix in KINDS.items():
        shallow, deep = (networks[f"{prefix}{depth}"] for depth in (depths[0], depths[-1]))
        rises[kind] = rise(shallow["train_error"], deep["train_error"])
    said = [sentence(kind, depths[0], depths[-1], rises[kind]) for kind in KINDS]
    found, text = verdict(**rises)
    return {"verdict": found, "rises": rises, "networks": networks, "text": "; ".join(said) + text}


def draw(folder: Folder, curves: dict[str, Any], depths: list[int], result: dict[str, Any]) -> None:
    """The paper's Figure 6, and the final training error over learning rates."""
    figure, axes = new_figure(2, height=4.0)
    for ax, (kind, prefix) in zip(axes, KINDS.items(), strict=True):
        for i, depth in enumerate(depths):
            curve, style = curves[f"{prefix}{depth}"], line_style(i)
            best = best_rate(curve)
            for split, width in (("train", 0.9), ("test", 2.2)):
                rows = list(zip(*curve[split][best], strict=True))
                label = f"{kind}-{depth}" if split == "test" else None
                epochs = range(1, len(rows) + 1)
                mean_and_range(ax, epochs, rows, linewidth=width, label=label, **style)
        ax.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
        legend_above(ax)
    axes[1].set_ylim(axes[0].get_ylim())
    seeds = "mean and range over seeds" if folder.settings["seeds"] > 1 else "one seed"
    title = f"training error thin, test error bold; {seeds}, each network at its best learning rate"
    save(figure, folder.path / "degradation.png", title)

    figure, axes = new_figure(2, height=3.4)
    rates = folder.settings["learning_rates"]
    for ax, (kind, prefix) in zip(axes, KINDS.items(), strict=True):
        for i, depth in enumerate(depths):
            rows = result["networks"][f"{prefix}{depth}"]["train_error_by_rate"]
            label, style = f"{kind}-{depth}", line_style(i)
            mean_and_range(ax, rates, rows, marker="o", label=label, **style)
        ax.set(xlabel="largest learning rate", ylabel="final training error (%)", xscale="log")
        ax.set(ylim=(-2, 102))
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.minorticks_off()
        legend_above(ax)
    save(figure, folder.path / "degradation_rates.png", seeds)
