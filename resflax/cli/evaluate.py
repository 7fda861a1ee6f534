"""`resflax evaluate WHERE`: accuracy and calibration of a trained network on a dataset."""

import argparse
import dataclasses
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from resflax.cli.evaluate_flags import parse
from resflax.cli.evaluate_plan import Plan, describe, make_plan
from resflax.data import StreamingSplit
from resflax.distributed.processes import is_main_process, lost_process_as_user_error
from resflax.evaluate.classifier import Classifier, full_batch_size
from resflax.evaluate.predictions import write_predictions
from resflax.evaluate.report import results, table
from resflax.evaluate.run import Evaluated, evaluate_split
from resflax.files import disk_errors_as_user_error, encode_text, write_atomic
from resflax.metrics import Metrics, summarize
from resflax.progress import ProgressMeter
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
    classify = Classifier(
        plan.pretrained.model.spec,
        plan.pretrained.variables,
        mean=plan.preprocess.mean,
        std=plan.preprocess.std,
        dtype=plan.dtype,
    )
    if is_main_process():
        print(describe(plan))
        print(classify.describe_backend(), flush=True)
    speed = Speed()
    evaluated = run(plan, args, classify, speed)
    metrics = summarize(evaluated.scores, len(plan.label_map.columns))
    values = results(metrics, evaluated, plan.label_map, plan.real_labels)
    if not is_main_process():
        return
    print(table(values))
    values |= _context(plan, args, arguments, speed)
    with disk_errors_as_user_error(
        "the results cannot be written", lambda: "choose another --out or --predictions"
    ):
        _write(args, plan, evaluated, metrics, values)
    if args.out:
        print(f"saved {args.out}/evaluation.json, reliability.png and confusion.png")
    if args.predictions:
        print(f"saved {args.predictions}")


class Speed:
    """Time since the start, and examples per second after the first two batches.

    The first batch includes the compilation, and the second one data that were read meanwhile.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.ends: list[tuple[float, int]] = []

    def add(self, examples: int) -> None:
        """Records the end of a batch."""
        self.ends.append((time.perf_counter(), examples))

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.ends[-1][0] - self.start

    @property
    def examples_per_second(self) -> float | None:
        """Examples per second after the second batch; None if there are fewer than three."""
        if len(self.ends) < 3:
            return None
        examples = sum(examples for _, examples in self.ends[2:])
        return examples / (self.ends[-1][0] - self.ends[1][0])


def run(plan: Plan, args: argparse.Namespace, classify: Classifier, speed: Speed) -> Evaluated:
    """Computes the scores of all examples, with a progress meter."""
    split = StreamingSplit(
        plan.source,
        max(plan.preprocess.size),
        plan.preprocess.channels,
        eval_transform=plan.views.transform(plan.preprocess),
        on_bad_example=plan.on_bad_example,
    )
    meter = ProgressMeter(len(split), interval=5.0, delay=5.0, silent=not is_main_process())

    def on_batch(examples: int) -> None:
        speed.add(examples)
        meter.update(examples, "evaluating")

    try:
        return evaluate_split(
            classify,
            split,
            plan.views,
            plan.label_map,
            batch_size=full_batch_size(args.batch_size, len(split)),
            num_workers=args.num_workers,
            on_batch=on_batch,
        )
    finally:
        meter.close()


def _context(
    plan: Plan, args: argparse.Namespace, arguments: Sequence[str], speed: Speed
) -> dict[str, Any]:
    """Returns the entries of `evaluation.json` that say what was evaluated, and how."""
    return {
        "model": args.where,
        "source": plan.pretrained.source,
        "checkpoint_chosen": plan.selection,
        "spec": dataclasses.asdict(plan.pretrained.model.spec),
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


def _write(
    args: argparse.Namespace,
    plan: Plan,
    evaluated: Evaluated,
    metrics: Metrics,
    values: dict[str, Any],
) -> None:
    if args.out:
        from resflax.evaluate.figures import draw_confusion, draw_reliability  # Matplotlib

        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=1, allow_nan=False)
        write_atomic(args.out / "evaluation.json", f"{text}\n".encode())
        if evaluated.skipped:
            lines = "\n".join([*evaluated.skipped, ""])
            write_atomic(args.out / "skipped.txt", encode_text(lines))
        model, data = Path(args.where).name, "/".join(Path(plan.source.name).parts[-2:])
        title = f"{model} on {data}\naccuracy {metrics.accuracy:.4f}"
        draw_reliability(evaluated.scores, args.out / "reliability.png", title)
        draw_confusion(
            metrics.confusion, plan.label_map.names, args.out / "confusion.png", title
        )  # fmt: skip
    if args.predictions:
        write_predictions(args.predictions, evaluated, plan.source, plan.label_map)
