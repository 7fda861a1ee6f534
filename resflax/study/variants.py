"""Networks that differ in one part, compared with the original by their final test errors.

The engine of the studies of tables 1 and 2 of He et al. 2016 (`shortcuts2016`, `activation`).
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resflax.plotting import DASHES, SHADES, mean_and_range, new_figure, save
from resflax.study.analysis import best_rate_index, errors_at_best_rate, format_range, mean
from resflax.study.arguments import add_training_arguments, open_dataset, positive_int
from resflax.study.recipes import make_recipe
from resflax.study.study_dir import StudyDir
from resflax.study.sweep import train_networks
from resflax.zoo import create_model

ORIGINAL = "original"


class Variant(NamedTuple):
    """A network of a study.

    Attributes:
      fields: fields of its spec that differ from the original's.
      paper: the paper's test error on CIFAR-10, as it is printed.
    """

    fields: Mapping[str, Any]
    paper: str


class Claim(NamedTuple):
    """A claim of the paper: how the test error of a variant compares with the original's.

    Attributes:
      variant: its name in the table.
      relation: "higher", "lower" or "close".
    """

    variant: str
    relation: str


class VariantStudy(NamedTuple):
    """A study as data: a network, its variants and the paper's claims about them.

    Attributes:
      name: name of the study and of its files.
      variants: the variants by name; `ORIGINAL` is one of them.
      claims: the paper's claims.
      depth: default depth of the networks, of the form 6n+2.
    """

    name: str
    variants: Mapping[str, Variant]
    claims: Sequence[Claim]
    depth: int

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the study's options."""
        parser.add_argument(
            "--depth",
            type=positive_int(20_000),
            default=self.depth,
            help=f"depth of the form 6n+2; default: {self.depth}",
        )
        add_training_arguments(parser, seeds=3, rates="0.1")

    def run(self, args: argparse.Namespace) -> None:
        """Trains the variants with several seeds each, checks the claims, prints and draws them.

        Raises:
          UserError: on an invalid depth or dataset, or if the directory cannot be used.
        """
        network, rates = f"cifar_resnet{args.depth}", args.learning_rates
        create_model(network)  # reports an invalid depth before the dataset is read
        config = make_recipe(args.dataset, args.epochs, args.batch_size)
        dataset = open_dataset(args)
        settings = {
            "study": self.name,
            "depth": args.depth,
            "seeds": args.seeds,
            "learning_rates": rates,
            "config": config.to_dict(),
        }
        # With `scan`, many networks compile in the time that one takes.
        fields: dict[str, Any] = {"zero_init": False, "num_classes": dataset.num_classes}
        models = {
            label: create_model(network, scan=True, **(fields | dict(variant.fields)))
            for label, variant in self.variants.items()
        }
        with StudyDir.open(args.out, settings) as study:
            curves = train_networks(study, models, dataset, config, seeds=args.seeds, rates=rates)
            result = analyze(curves, self.variants, self.claims, rates)
            study.write_result(self.name, result | {"curves": curves})
            draw(study, self.name, curves, result["variants"])
        print(f"{result['table']}\n\n{result['text']}")
        print(f"saved in {study.path}: {self.name}.png, {self.name}.json")


def compare(errors: Sequence[float], original: Sequence[float]) -> str:
    """Returns whether errors are "higher", "lower" or "close" to the original's.

    They are higher if every seed's is above every seed's of the original.

    >>> compare([3.0, 4.0], [1.0, 2.0]), compare([1.5, 4.0], [1.0, 2.0])
    ('higher', 'close')
    """
    if min(errors) > max(original):
        return "higher"
    return "lower" if max(errors) < min(original) else "close"


def analyze(
    curves: Mapping[str, Any],
    variants: Mapping[str, Variant],
    claims: Sequence[Claim],
    rates: Sequence[float],
) -> dict[str, Any]:
    """Computes the final errors of every variant at its best learning rate, and the verdict."""
    errors = {label: errors_at_best_rate(curve, rates) for label, curve in curves.items()}
    original = errors[ORIGINAL]["test_error"]
    rows, checked = {}, []
    for label, row in errors.items():
        relation = "" if label == ORIGINAL else compare(row["test_error"], original)
        rows[label] = row | {"relation": relation, "paper": variants[label].paper}
    for label, claimed in claims:
        found = rows[label]["relation"]
        difference = mean(rows[label]["test_error"]) - mean(original)
        checked.append(
            {"variant": label, "claim": claimed, "found": found, "difference": difference}
            | {"held": found == claimed}
        )
    held = sum(claim["held"] for claim in checked)
    lines = [_describe(claim) for claim in checked]
    verdict = f"{held} of {len(checked)} claims of the paper held"
    return {
        "verdict": verdict,
        "claims": checked,
        "variants": rows,
        "table": markdown_table(rows),
        "text": "\n".join([*lines, f"{verdict}."]),
    }


def _describe(claim: Mapping[str, Any]) -> str:
    """Describes a checked claim.

    >>> claim = {"variant": "conv", "claim": "higher", "found": "close", "difference": 0.25}
    >>> for part in _describe(claim | {"held": False}).split(" ("):
    ...     print(part)
    NOT held, expected higher: the test error of conv is close
    +0.25 points, the ranges of the seeds overlap)
    """
    difference = f"{claim['difference']:+.2f} points"
    overlap = "overlap" if claim["found"] == "close" else "do not overlap"
    status = "held" if claim["held"] else f"NOT held, expected {claim['claim']}"
    return (
        f"{status}: the test error of {claim['variant']} is {claim['found']} ({difference}, the"
        f" ranges of the seeds {overlap})"
    )


def markdown_table(rows: Mapping[str, Any]) -> str:
    """Formats the variants as a Markdown table; errors as mean and range over seeds."""
    lines = [
        "| variant | learning rate | training error % | test error % | paper, CIFAR-10 % |",
        "| --- | --: | --: | --: | --: |",
    ]
    for label, row in rows.items():
        errors = " | ".join(format_range(row[key]) for key in ("train_error", "test_error"))
        lines.append(f"| {label} | {row['learning_rate']:g} | {errors} | {row['paper']} |")
    return "\n".join(lines)


def draw(study: StudyDir, name: str, curves: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Draws the final test errors, one marker per seed, and the training errors over epochs."""
    figure, axes = new_figure(2, height=1.6 + 0.32 * len(rows))
    for i, (label, row) in enumerate(rows.items()):
        color, dashes = SHADES[i % len(SHADES)], DASHES[(i + i // len(SHADES)) % len(DASHES)]
        errors = row["test_error"]
        axes[0].plot(errors, [-i] * len(errors), "o", color=color, fillstyle="none")
        axes[0].plot([mean(errors)], [-i], "|", color=color, markersize=14)
        seeds = curves[label]["train"][best_rate_index(curves[label])]
        epochs = list(zip(*seeds, strict=True))
        style: Any = {"color": color, "linestyle": dashes}
        mean_and_range(axes[1], range(1, len(epochs) + 1), epochs, label=label, **style)
    axes[0].set_yticks([-i for i in range(len(rows))], list(rows))
    axes[0].set(xlabel="final test error (%), one circle per seed, bar: mean", xlim=(0, None))
    axes[1].set(xlabel="epoch", ylabel="training error (%)", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize=7, handlelength=3.2)
    save(figure, study.path / f"{name}.png")
