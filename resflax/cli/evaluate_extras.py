"""Parts of `resflax evaluate` that are asked for by an option, as rows of a table."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from resflax.cli.evaluate_plan import Plan
from resflax.cli.evaluate_runner import Runner
from resflax.data.corruptions import table_side
from resflax.evaluate import ood
from resflax.evaluate.assess import Assessment, Request
from resflax.evaluate.corruption_report import DATASETS, corruption_results
from resflax.evaluate.corruptions import corrupted_sums
from resflax.evaluate.deep_ensemble import OWN_MEMBERS, Reference, describe_equivalent
from resflax.evaluate.run import Reduction


def make_request(plan: Plan, args: argparse.Namespace, runner: Runner) -> Request:
    """Returns what to assess."""
    return Request(
        names=plan.members.names,
        held_out=runner.held_out if plan.held_out else None,
        cross_validate=plan.cross_validate,
        alpha=args.conformal,
        select=args.select,
        ood=bool(plan.ood or plan.ood_corruptions),
    )


def _ood(plan: Plan, runner: Runner, assessment: Assessment, values: dict[str, Any]) -> Any:
    """Detects the images of other datasets, and corrupted ones of the split."""
    del values
    systems = assessment.targets.systems
    reduction = Reduction(lambda rows: ood.score_rows(systems, rows))
    found = {name: runner.ood(name, reduction).examples for name in plan.ood}
    if plan.ood_corruptions:
        corrupted = runner.corrupted(list(plan.ood_corruptions.values()), reduction)
        found |= {name: corrupted[c].examples for name, c in plan.ood_corruptions.items()}
    inside = assessment.scored.ood
    return {name: ood.compare(systems, inside, outside) for name, outside in found.items()}


def _deep_ensemble(
    plan: Plan, runner: Runner, assessment: Assessment, values: dict[str, Any]
) -> Any:
    """Compares with a deep ensemble: by default the members, unless they are samples."""
    del runner, assessment
    if "calibrated" not in values:
        return None
    if plan.reference:
        return describe_equivalent(values, plan.reference)
    if "size_curve" not in values or plan.members.samples:
        return None
    curve = np.array(values["size_curve"]["calibrated_nll"])
    return describe_equivalent(values, Reference(OWN_MEMBERS, curve, values["split"]))


def _corruptions(plan: Plan, runner: Runner, assessment: Assessment, values: dict[str, Any]) -> Any:
    """Evaluates corrupted images."""
    if not plan.corruptions.conditions:
        return None
    systems = assessment.targets.systems
    corrupted = runner.corrupted(plan.corruptions.conditions, corrupted_sums(systems))
    found = corruption_results(
        {condition: evaluated.sums for condition, evaluated in corrupted.items()},
        systems,
        clean_accuracy=values["accuracy"],
        reference=plan.corruptions.reference,
    )
    parameters = DATASETS[table_side(plan.preprocess.size)]
    return {"seed": plan.corruptions.seed, "parameters": parameters, **found}


Extra = Callable[[Plan, Runner, Assessment, dict[str, Any]], Any]
# Key in `evaluation.json`, and what computes its value; nothing is written for an empty one.
EXTRAS: dict[str, Extra] = {
    "ood": _ood,
    "deep_ensemble_equivalent": _deep_ensemble,
    "corruptions": _corruptions,
}


def extra_results(
    plan: Plan, runner: Runner, assessment: Assessment, values: dict[str, Any]
) -> dict[str, Any]:
    """Returns the values of `EXTRAS`; all processes must call it."""
    found = {key: extra(plan, runner, assessment, values) for key, extra in EXTRAS.items()}
    return {key: value for key, value in found.items() if value}
