"""The metrics of each system as JSON values, before and after calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from resflax.evaluate.assess import Assessment
from resflax.metrics import (
    CONFORMAL_SCORES,
    BrierSums,
    ExampleScores,
    Sets,
    aurc,
    bootstrap_interval,
    bounded_samples,
    brier_decomposition,
    calibration_error,
    mean_statistic,
    means,
    size_curve,
    summarize,
    summarize_sets,
)
from resflax.metrics.risk_coverage import risk_coverage

# Metrics of a system that are numbers; means and standard deviations over the members have these.
KEYS = ("accuracy", "top5", "nll", "brier", "ece", "adaptive_ece", "aurc")
# Those of them that are means over the examples.
MEANS = ("accuracy", "nll", "brier")


def summarize_scores(scores: ExampleScores, brier: BrierSums) -> dict[str, Any]:
    """Returns `KEYS` and "brier_decomposition".

    Args:
      scores: of the examples that count.
      brier: sums over the same examples.
    """
    metrics = summarize(scores, len(brier.p))
    values: dict[str, Any] = {key: getattr(metrics, key) for key in KEYS if key != "aurc"}
    values["aurc"] = risk_coverage(scores.confidence, scores.is_correct).area
    values["brier_decomposition"] = brier_decomposition(brier)._asdict()
    return values


def summarize_system(assessment: Assessment, i: int, *, intervals: bool = False) -> dict[str, Any]:
    """Returns the metrics of a system, "calibrated" and "conformal", if there are any.

    Args:
      assessment: the results over a split.
      i: index of the system.
      intervals: whether to add "intervals", by the bootstrap.
    """
    values = summarize_scores(assessment.scored.scores[i], assessment.brier[i])
    if intervals:
        values["intervals"] = bootstrap([assessment.scored.scores[i]])
    if calibration := assessment.calibration:
        splits = calibration.splits
        values["calibrated"] = _mean_over_splits(
            [summarize_scores(split.scores.scores[i], split.sums.brier[i]) for split in splits]
        )
        values["calibrated"]["temperature"] = float(np.mean(calibration.temperatures(i)))
        if intervals:
            values["calibrated"]["intervals"] = bootstrap(calibration.scores(i))
        if splits[0].scores.sets[i]:
            sets = [_summarize_all_sets(split.scores.sets[i]) for split in splits]
            values["conformal"] = {"alpha": assessment.targets.alpha, **_mean_over_splits(sets)}
    return values


def _mean_over_splits(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _mean_over_splits([part[key] for part in parts])
        if isinstance(value, dict)
        else float(np.mean([part[key] for part in parts]))
        for key, value in parts[0].items()
    }


def _summarize_all_sets(sets: dict[str, Sets]) -> dict[str, Any]:
    return {method: summarize_sets(sets[method])._asdict() for method in CONFORMAL_SCORES}


def per_example(scores: ExampleScores) -> Float[np.ndarray, "n means"]:
    """Returns the values of `MEANS` for each example."""
    return np.stack([scores.is_correct, -scores.label_log_probability, scores.brier], 1)


def bootstrap(splits: Sequence[ExampleScores]) -> dict[str, list[float]]:
    """Returns 95 % intervals of `MEANS`, the calibration error and AURC, from 1,000 samples.

    AURC has fewer samples of more than 10,000 examples, see `bounded_samples`.

    Args:
      splits: the examples, in one order, in each random split, over which metrics are averaged.
    """
    count = len(splits[0].label)
    low, high = bootstrap_interval(means(np.mean([per_example(s) for s in splits], 0)), count)
    ece = bootstrap_interval(mean_statistic([calibration_error(s) for s in splits]), count)
    area = bootstrap_interval(
        mean_statistic([aurc(s) for s in splits]), count, samples=bounded_samples(count)
    )
    names = (*MEANS, "ece", "aurc")
    rows = zip(names, (*low, ece.low, area.low), (*high, ece.high, area.high), strict=True)
    return {name: [float(a), float(b)] for name, a, b in rows}


def minus_mean_member(systems: Sequence[Sequence[ExampleScores]]) -> dict[str, Any]:
    """Returns how much the ensemble differs from its mean member, and 95 % intervals.

    Each sample of the bootstrap has the same examples for both.

    Args:
      systems: the ensemble, and then each member; the examples of each in each random split, over
        which metrics are averaged.
    """
    ensemble, *members = (np.mean([per_example(s) for s in splits], 0) for splits in systems)
    difference = ensemble - np.mean(members, 0)
    low, high = bootstrap_interval(means(difference), len(difference))
    rows = zip(MEANS, difference.mean(0), low, high, strict=True)
    return {name: {"mean": float(m), "interval": [float(a), float(b)]} for name, m, a, b in rows}


def mean_and_std(values: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the mean and the sample standard deviation of `KEYS` over the members."""
    table = np.array([[member[key] for key in KEYS] for member in values])
    std = table.std(0, ddof=1) if len(table) > 1 else np.zeros(len(KEYS))
    pairs = (dict(zip(KEYS, row.tolist(), strict=True)) for row in (table.mean(0), std))
    mean, deviation = pairs
    return mean, deviation


def summarize_sizes(assessment: Assessment) -> dict[str, list[float]]:
    """Returns metrics against the number of members: lists by size, from one member."""
    assert assessment.subsets is not None
    curve = size_curve(assessment.targets.subsets, assessment.subsets)
    values = {name: getattr(curve, name).tolist() for name in ("size", "accuracy", "nll")}
    if assessment.calibration:
        values["calibrated_nll"] = curve.scaled_nll.tolist()
    return values


def summarize_members(assessment: Assessment, sources: Sequence[str]) -> dict[str, Any]:
    """Returns what only the evaluation of an ensemble has.

    Args:
      assessment: the results over a split, of two members or more.
      sources: one line for each member that says what was loaded.

    Returns:
      "ensemble", "members", their "members_mean" and "members_std", "size_curve", and "selected".
    """
    systems, scored = assessment.targets.systems, assessment.scored
    count = len(systems[0].members)
    members = [
        {"where": systems[i].name, "source": source, **summarize_system(assessment, i)}
        for i, source in zip(range(1, count + 1), sources, strict=True)
    ]
    uncertainty = {k: float(v.mean()) for k, v in scored.uncertainty._asdict().items()}
    ensemble = {"size": count, **summarize_system(assessment, 0, intervals=True), **uncertainty}
    ensemble["minus_mean_member"] = minus_mean_member([[s] for s in scored.scores[: count + 1]])
    mean, std = mean_and_std(members)
    if assessment.calibration:
        ensemble["calibrated"]["minus_mean_member"] = minus_mean_member(
            [assessment.calibration.scores(i) for i in range(count + 1)]
        )
        parts = mean_and_std([member["calibrated"] for member in members])
        mean, std = (v | {"calibrated": c} for v, c in zip((mean, std), parts, strict=True))
    values: dict[str, Any] = {
        "ensemble": ensemble,
        "members": members,
        "members_mean": mean,
        "members_std": std,
        "size_curve": summarize_sizes(assessment),
    }
    if len(systems) > count + 1:
        selected = systems[-1].members
        names = [systems[1 + i].name for i in selected]
        own = summarize_system(assessment, count + 1)
        values["selected"] = {"members": list(selected), "where": join_names(names), **own}
    return values


def join_names(names: Sequence[str]) -> str:
    """Returns the arguments that name some members.

    >>> join_names(["runs/a#0", "runs/a#3", "runs/b"])
    'runs/a#0,3 runs/b'
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        base, mark, member = name.rpartition("#")
        groups.setdefault(f"{base}#" if mark and member.isdecimal() else name, []).append(member)
    return " ".join(
        f"{base}{','.join(members)}" if base.endswith("#") else base
        for base, members in groups.items()
    )
