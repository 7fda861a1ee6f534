"""`resflax evaluate WHERE`: accuracy and calibration of a trained network on a dataset."""

import argparse
import dataclasses
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from resflax.cli.evaluate_extras import extra_results, make_request
from resflax.cli.evaluate_flags import parse
from resflax.cli.evaluate_plan import Plan, describe, make_plan
from resflax.cli.evaluate_runner import Runner, Speed
from resflax.distributed.processes import is_main_process, lost_process_as_user_error
from resflax.evaluate.assess import Assessment, assess
from resflax.evaluate.predictions import write_predictions
from resflax.evaluate.report import results
from resflax.evaluate.table import table
from resflax.files import disk_errors_as_user_error, encode_text, write_atomic
from resflax.run.signals import InterruptedRunError
from resflax.runtime import enable_compilation_cache


def main(arguments: list[str]) -> None:
    """Evaluates a network, prints the results and writes them to `--out`.

    Raises:
      UserError: if the model, the dataset or an argument is invalid or they do not fit; nothing is
        written then.
      InterruptedRunError: after Ctrl-C.
    """
    args = parse(arguments)
    args.distributed_config.initialize()
    enable_compilation_cache()
    try:
        with lost_process_as_user_error():
            _evaluate(args, arguments)
    except KeyboardInterrupt as e:
        raise InterruptedRunError(signal.SIGINT, "\nstopped: nothing was written") from e


def _evaluate(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    plan = make_plan(args)
    classify = plan.members.classifier(plan.dtype)
    if is_main_process():
        print(describe(plan))
        print(classify.describe_backend(), flush=True)
    runner = Runner(plan, args, classify)
    assessment = assess(runner.test, make_request(plan, args, runner))
    values = results(assessment, plan.label_map, plan.members.sources, plan.real_labels)
    values |= _context(plan, args, arguments, runner.speed)
    values |= extra_results(plan, runner, assessment, values)
    if not is_main_process():
        return
    print(table(values))
    with disk_errors_as_user_error(
        "the results cannot be written", lambda: "choose another --out or --predictions"
    ):
        _write(args, plan, assessment, values)


def _context(
    plan: Plan, args: argparse.Namespace, arguments: Sequence[str], speed: Speed
) -> dict[str, Any]:
    """Returns the entries of `evaluation.json` that say what was evaluated, and how."""
    return {
        "model": " ".join(args.where),
        "source": plan.members.describe(),
        "checkpoint_chosen": plan.selection,
        "spec": plan.members.spec.to_json_dict(),
        **plan.members.as_json(),
        "dataset": plan.dataset,
        "split": plan.source.name,
        "preprocess": dataclasses.asdict(plan.preprocess),
        "views": dataclasses.asdict(plan.views),
        "dtype": plan.dtype,
        "arguments": list(arguments),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "platform": jax.default_backend(),
        "seconds": speed.seconds,
        "examples_per_second": speed.examples_per_second,
    }


def _title(args: argparse.Namespace, plan: Plan) -> str:
    """Returns the title of the figures."""
    model = Path(args.where[0]).name if len(args.where) == 1 else f"{len(args.where)} networks"
    return f"{model} on {'/'.join(Path(plan.source.name).parts[-2:])}"


def _write(
    args: argparse.Namespace, plan: Plan, assessment: Assessment, values: dict[str, Any]
) -> None:
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=1, allow_nan=False)
        write_atomic(args.out / "evaluation.json", f"{text}\n".encode())
        skipped = assessment.evaluated.skipped
        if skipped:
            write_atomic(args.out / "skipped.txt", encode_text("\n".join([*skipped, ""])))
        from resflax.evaluate.all_figures import draw_all  # Matplotlib

        names = draw_all(assessment, values, args.out, _title(args, plan))
        print(f"saved {args.out}/evaluation.json, {', '.join(names[:-1])} and {names[-1]}")
    if args.predictions:
        args.predictions.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(args.predictions, assessment, plan.source, plan.label_map)
        print(f"saved {args.predictions}")
