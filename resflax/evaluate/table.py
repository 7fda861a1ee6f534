"""The results of an evaluation as a table for people."""

from collections.abc import Iterator
from typing import Any

from resflax.evaluate.corruption_report import corruption_lines
from resflax.evaluate.deep_ensemble import OWN_MEMBERS
from resflax.evaluate.summary import KEYS

# Description of each metric.
NAMES = {
    "accuracy": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "nll": "negative log-likelihood, nats",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "adaptive_ece": "the same, equal-mass bins",
    "aurc": "area under risk and coverage",
}
UNCERTAINTY = {
    "total_entropy": "total uncertainty, nats",
    "expected_entropy": "expected entropy of a member",
    "mutual_information": "mutual information",
    "disagreement": "disagreement of two members",
    "pairwise_kl": "KL divergence of two members",
}
MAX_LISTED_CLASSES = 20


def table(values: dict[str, Any]) -> str:
    """Returns the results as text.

    Args:
      values: see `results`.
    """
    counts = f"{values['correct']:,} of {values['examples']:,} correct"
    if "ensemble" in values:
        counts += f" by the mean probabilities of {values['ensemble']['size']} members"
    for key in ("skipped", "excluded"):
        counts += f", {values[key]:,} {key}" if values[key] else ""
    lines = [counts, _header(values), *_metric_lines(values)]
    if values.get("real_accuracy") is not None:
        accuracy, examples = values["real_accuracy"], values["real_examples"]
        lines.append(f"  {'ReaL accuracy':32}{accuracy:8.4f}  of {examples:,} examples")
    if "ensemble" in values:
        lines += [f"  {name:32}{values[key]:8.4f}" for key, name in UNCERTAINTY.items()]
    lines += [*_calibration_lines(values), *_conformal_lines(values), *_ood_lines(values)]
    lines += _selection_lines(values)
    lines += corruption_lines(values["corruptions"]) if "corruptions" in values else []
    return "\n".join([*lines, "", *_class_lines(values)])


def _header(values: dict[str, Any]) -> str:
    line = f"  {'':32}{'ensemble' if 'ensemble' in values else 'network':>8}  {'95 % interval':16}"
    line += f"  {'calibrated':>10}" if "calibrated" in values else ""
    if "ensemble" in values:
        line += f"  {'member, +- std':>17}"
        line += f"  {'calibrated member':>17}" if "calibrated" in values else ""
    return line.rstrip()


def _metric_lines(values: dict[str, Any]) -> Iterator[str]:
    for key in KEYS:
        interval = values["intervals"].get(key)
        text = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        line = f"  {NAMES[key]:32}{values[key]:8.4f}  {text:16}"
        line += f"  {values['calibrated'][key]:10.4f}" if "calibrated" in values else ""
        if "ensemble" in values:
            mean, std = values["members_mean"], values["members_std"]
            line += f"  {mean[key]:7.4f} +- {std[key]:.4f}"
            line += f"  {mean['calibrated'][key]:17.4f}" if "calibrated" in values else ""
        yield line.rstrip()


def _calibration_lines(values: dict[str, Any]) -> Iterator[str]:
    if "calibration" in values:
        keys = ("data", "examples", "splits", "temperatures")
        data, examples, splits, count = (values["calibration"][key] for key in keys)
        temperature = f"{values['calibrated']['temperature']:.4f}"
        name = f"temperature {temperature}, fitted"
        if count > 1:
            name = f"{count} temperatures, mean {temperature}, each fitted"
        yield f"calibrated with {name} to {examples:,} examples:"
        repeated = f", in {splits} random splits, over which the metrics are averaged"
        yield f"  {data}{repeated if splits > 1 else ''}"
    equivalent = values.get("deep_ensemble_equivalent", {})
    if equivalent.get("reference", OWN_MEMBERS) != OWN_MEMBERS:
        yield f"by the calibrated likelihood {_equivalent(equivalent['members'])}"
        yield f"  of {equivalent['reference']}"


def _equivalent(size: float | None) -> str:
    """Returns how many members of a deep ensemble are as good."""
    if size is None:
        return "better than the ensemble of all members"
    return f"as good as an ensemble of {size:.2f} members"


def _conformal_lines(values: dict[str, Any]) -> Iterator[str]:
    if "conformal" in values:
        alpha = values["conformal"]["alpha"]
        yield f"conformal sets made to contain the label with probability {1 - alpha:g}"
        for method, own in values["conformal"].items():
            if method != "alpha":
                yield (
                    f"  {method.upper():32}{own['coverage']:8.4f} coverage, {own['mean_size']:.4f}"
                    " classes on average"
                )


def _ood_lines(values: dict[str, Any]) -> Iterator[str]:
    for name, own in values.get("ood", {}).items():
        yield (
            f"detection of the {own['examples']:,} images of {name}: AUROC with 95 % interval,"
            " AUPR, FPR95"
        )
        for score, found in own["scores"].items():
            low, high = found["intervals"]["auroc"]
            line = f"  {score.replace('_', ' '):32}{found['auroc']:8.4f}"
            line += f"  {low:.4f} to {high:.4f}{found['aupr']:9.4f}{found['fpr95']:9.4f}"
            if score in (mean := own.get("members_mean", {})):
                line += f"   members{mean[score]['auroc']:8.4f}{mean[score]['aupr']:9.4f}"
                line += f"{mean[score]['fpr95']:9.4f}"
            yield line


def _selection_lines(values: dict[str, Any]) -> Iterator[str]:
    if "selected" in values:
        own = values["selected"]
        nll = f"accuracy {own['accuracy']:.4f}, negative log-likelihood {own['nll']:.4f}"
        yield f"selected on held-out training data: {own['where']} ({nll})"
        equivalent = values["deep_ensemble_equivalent"]
        reference = "of them"
        if equivalent["reference"] != OWN_MEMBERS:
            reference = f"of {equivalent['reference']}"
        yield f"  by the calibrated likelihood {_equivalent(equivalent['selected'])} {reference}"


def _class_lines(values: dict[str, Any]) -> list[str]:
    rows = [
        (accuracy, count, name)
        for accuracy, count, name in zip(
            values["per_class"], values["class_examples"], values["classes"], strict=True
        )
        if accuracy is not None
    ]
    title = "accuracy of each class"
    if len(rows) > MAX_LISTED_CLASSES:
        rows = sorted(rows)[: MAX_LISTED_CLASSES // 2]
        title = f"accuracy of the {len(rows)} worst classes"
    return [
        f"{title}, and number of examples",
        *(f"  {name[:30]:32}{accuracy:8.4f}{count:8,}" for accuracy, count, name in rows),
    ]
