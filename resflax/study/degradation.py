"""Deeper plain networks train worse, deeper residual ones do not (He et al. 2015, Figures 1 and 6).

Trains plain and residual networks of equal depth and parameter count (shortcut A has no parameters)
with the same recipe, several seeds and learning rates, and shows each at its best learning rate.
"""

import argparse
from typing import Any

from resflax.errors import UserError
from resflax.plotting import legend_above, line_style, mean_and_range, new_figure, save
from resflax.study.analysis import (
    best_rate_index,
    degradation_verdict,
    describe_increase,
    error_increase,
    errors_at_best_rate,
)
from resflax.study.arguments import add_training_arguments, number_list, open_dataset
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import StudyDir
from resflax.study.sweep import train_networks
from resflax.zoo import create_model

KINDS = {"plain": "cifar_plain", "residual": "cifar_resnet"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the study's options."""
    parser.add_argument(
        "--depths",
        type=number_list(int, 8, 20_000),
        default="20,32,56",
        help="depths of the form 6n+2; default: 20,32,56",
    )
    add_training_arguments(parser, seeds=3, rates="0.02,0.1")


def run(args: argparse.Namespace) -> None:
    """Trains the networks, compares them, draws the figures.

    Raises:
      UserError: on an invalid depth or dataset, or if the directory cannot be used.
    """
    if len(args.depths) < 2:
        raise UserError(f"--depths is {args.depths}: expected two or more, to compare")
    depths, rates = sorted(args.depths), args.learning_rates
    names = [f"{prefix}{depth}" for prefix in KINDS.values() for depth in depths]
    for name in names:
        create_model(name)  # reports an invalid depth before the dataset is read
    config = make_recipe(args.dataset, args.epochs, args.batch_size)
    dataset = open_dataset(args)
    settings = {
        "study": "degradation",
        "depths": depths,
        "seeds": args.seeds,
        "learning_rates": rates,
        "config": config.to_dict(),
    }
    # Both kinds start alike: no residual branch is initialized to zero.
    fields: Any = {"zero_init": False, "num_classes": dataset.num_classes}
    models = {name: create_model(name, **fields) for name in names}
    with StudyDir.open(args.out, settings) as study:
        curves = train_networks(study, models, dataset, config, seeds=args.seeds, rates=rates)
        result = analyze(curves, depths, rates) | {"curves": curves}
        study.write_result("degradation", result)
        draw_curves(study, curves, depths)
        draw_rates(study, result["networks"], depths)
    print(result["text"])
    print(f"saved in {study.path}: degradation.png, degradation_rates.png, degradation.json")


def analyze(curves: dict[str, Any], depths: list[int], rates: list[float]) -> dict[str, Any]:
    """Computes the final errors of every network at its best learning rate, and the verdict."""
    networks: dict[str, Any] = {}
    for name, curve in curves.items():
        by_rate = [[seed[-1] for seed in seeds] for seeds in curve["train"]]
        networks[name] = errors_at_best_rate(curve, rates) | {"train_error_by_rate": by_rate}
    increases = {}
    for kind, prefix in KINDS.items():
        shallow, deep = (networks[f"{prefix}{depth}"] for depth in (depths[0], depths[-1]))
        increases[kind] = error_increase(shallow["train_error"], deep["train_error"])
    sentences = [describe_increase(kind, depths[0], depths[-1], increases[kind]) for kind in KINDS]
    verdict, explanation = degradation_verdict(**increases)
    return {
        "verdict": verdict,
        "error_increase": increases,
        "networks": networks,
        "text": f"{'; '.join(sentences)}. {explanation}",
    }


def draw_curves(study: StudyDir, curves: dict[str, Any], depths: list[int]) -> None:
    """Draws the paper's Figure 6: errors over epochs."""
    figure, axes = new_figure(2, height=4.0)
    for ax, (kind, prefix) in zip(axes, KINDS.items(), strict=True):
        for i, depth in enumerate(depths):
            curve, style = curves[f"{prefix}{depth}"], line_style(i)
            best = best_rate_index(curve)
            for split, width in (("train", 0.9), ("test", 2.2)):
                rows = list(zip(*curve[split][best], strict=True))
                label = f"{kind}-{depth}" if split == "test" else None
                epochs = range(1, len(rows) + 1)
                mean_and_range(ax, epochs, rows, linewidth=width, label=label, **style)
        ax.set(xlabel="epoch", ylabel="error (%)", ylim=(0, None))
        legend_above(ax)
    axes[1].set_ylim(axes[0].get_ylim())
    title = (
        f"training error thin, test error bold; {_describe_seeds(study)}, each network at its best"
        " learning rate"
    )
    save(figure, study.path / "degradation.png", title)


def draw_rates(study: StudyDir, networks: dict[str, Any], depths: list[int]) -> None:
    """Draws the final training error over learning rates."""
    figure, axes = new_figure(2, height=3.4)
    rates = study.settings["learning_rates"]
    for ax, (kind, prefix) in zip(axes, KINDS.items(), strict=True):
        for i, depth in enumerate(depths):
            rows = networks[f"{prefix}{depth}"]["train_error_by_rate"]
            label, style = f"{kind}-{depth}", line_style(i)
            mean_and_range(ax, rates, rows, marker="o", label=label, **style)
        ax.set(xlabel="peak learning rate", ylabel="final training error (%)", xscale="log")
        ax.set(ylim=(-2, 102))
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.minorticks_off()
        legend_above(ax)
    save(figure, study.path / "degradation_rates.png", _describe_seeds(study))


def _describe_seeds(study: StudyDir) -> str:
    return "mean and range over seeds" if study.settings["seeds"] > 1 else "one seed"
