"""Times the writers of metrics of a training run, as a share of its steps.

    python -m benchmarks.writers --model=cifar_resnet20 --writers=csv,tensorboard

In one process, parts of a run with all writers alternate with parts without them, on the same
compiled step and with the same records in `metrics.jsonl`: the ratio of their times has all costs,
those of the writers' threads included. The time inside of each writer's calls is less noisy, and
has only what delays the loop. Images and config, which are written once, are not part of it.
Histograms are timed alone: their cost is that of one set, in steps.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from absl import logging

from benchmarks.cli import check_json_path, run, write_json
from benchmarks.machine import describe, machine
from benchmarks.report import table
from benchmarks.task import check_integer, parse_task
from resflax import tune_malloc
from resflax.errors import Parser
from resflax.files import path_type
from resflax.run.metric_writer import (
    WRITERS,
    MetricWriter,
    WriterStart,
    check_writers,
    open_writers,
    parse_writers,
    scalars_of,
)


class RecordedSteps:
    """Training steps with records, as the loop of a run makes them.

    Attributes:
      writer_seconds: time inside of the calls of each writer.
    """

    def __init__(self, trainer: Any, folder: Path, names: tuple[str, ...], every: int) -> None:
        from resflax.run.records import Records

        self.trainer, self._every = trainer, every
        self._records = Records(folder / "metrics.jsonl")
        self.writers = dict(zip(names, open_writers(names, WriterStart(folder)), strict=True))
        self.writer_seconds: dict[str, float] = defaultdict(float)
        self._step_fn = trainer.make_step_fn(0)
        self.state = trainer.engine.put_state(trainer.init())
        self.step = 0

    def run(self, records: int, *, writes: bool) -> float:
        """Trains for some records, with or without the writers; returns the seconds."""
        start = time.perf_counter()
        for _ in range(records):
            self._add_record(self._train(), writes=writes)
        return time.perf_counter() - start

    def _train(self) -> list[dict[str, Any]]:
        """Takes the steps of one record, and returns their metrics on the host."""
        from resflax.train.input_pipeline import limit_in_flight

        pending: list[Any] = []
        for _ in range(self._every):
            self.state, metrics = self._step_fn(self.state)
            pending.append(metrics)
            limit_in_flight(pending)
        self.step += self._every
        fetched: list[dict[str, Any]] = self.trainer.engine.to_host(pending)
        return fetched

    def _add_record(self, metrics: list[dict[str, Any]], *, writes: bool) -> None:
        from resflax.run.memory import memory_use
        from resflax.train.results import make_record

        keys = ("loss", "accuracy")
        means = {key: statistics.fmean(float(row[key]) for row in metrics) for key in keys}
        epoch, config = self.trainer.epoch(self.step), self.trainer.config
        record = make_record(config, self.step, epoch, "train", means, 0.1, 1.0, memory_use())
        self._records.add(record)
        for name, writer in self.writers.items() if writes else ():
            start = time.perf_counter()
            writer.write_scalars(self.step, "train", scalars_of(record))
            self.writer_seconds[name] += time.perf_counter() - start

    def time_histograms(self) -> float:
        """Returns the seconds for one set of histograms, after a first one that compiles."""
        from resflax.train.histograms import HistogramSource

        source, seconds = HistogramSource(self.trainer.run), 0.0
        drawing: list[MetricWriter] = [
            writer for name, writer in self.writers.items() if WRITERS[name].has_histograms
        ]
        for _ in range(2):
            start = time.perf_counter()
            arrays = source(self.state, self.step)
            for writer in drawing:
                writer.write_histograms(self.step, arrays)
            seconds = time.perf_counter() - start
        return seconds


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds per step with and without writers, by round, and per writer."""
    from resflax.train import Trainer, build, default_config

    task, names = parse_task(args.model), parse_writers(args.writers)
    records = max(1, args.steps // args.every)
    config = default_config()
    config.model, config.batch_size, config.epochs = task.model, args.batch, 10**6
    config.log_every_steps = args.every
    config.dataset = f"fake:{args.size}x{args.size}x3:10:{4 * args.batch}"
    trainer, ratios, plain = Trainer(build(config)), [], []
    with tempfile.TemporaryDirectory() as folder:
        steps = RecordedSteps(trainer, Path(folder), names, args.every)
        steps.run(1, writes=True)  # compiles
        steps.writer_seconds.clear()
        for k in range(args.rounds):
            order = (False, True) if k % 2 else (True, False)
            seconds = {writes: steps.run(records, writes=writes) for writes in order}
            ratios.append(seconds[True] / seconds[False])
            plain.append(seconds[False] / (records * args.every))
        histograms = steps.time_histograms()
        for writer in steps.writers.values():
            writer.close()
    step = statistics.median(plain)
    trained = step * args.rounds * records * args.every
    return {
        "step_seconds": step,
        "ratios": ratios,
        "share": {name: steps.writer_seconds[name] / trained for name in names},
        "histogram_steps": histograms / step,
    }


def _parse_args(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.writers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="cifar_resnet20", help="default: %(default)s")
    add("--size", type=int, default=32, help="height and width of images; default: %(default)s")
    add("--batch", type=int, default=128, help="default: %(default)s")
    add("--writers", default="csv,tensorboard", metavar="A,B", help="default: %(default)s")
    add("--every", type=int, default=10, help="steps per record; default: %(default)s")
    add("--steps", type=int, default=100, help="steps per part; default: %(default)s")
    add("--rounds", type=int, default=9, help="default: %(default)s")
    add("--json", type=path_type, metavar="PATH", help="write the results to this file")
    args = parser.parse_args(argv)
    for name, most in (("batch", 2**20), ("every", 10**6), ("steps", 10**6), ("rounds", 10**4)):
        check_integer(f"--{name}", getattr(args, name), most)
    check_writers(parse_writers(args.writers))
    check_json_path(args.json)
    return args


def main(argv: list[str]) -> None:
    """Measures the writers and prints a table."""
    args = _parse_args(argv)
    tune_malloc()
    logging.set_verbosity(logging.ERROR)
    values, info = measure(args), machine()
    low, median, high = statistics.quantiles(values["ratios"], n=4, method="inclusive")
    print(describe(info))
    print(f"\n## {args.model}, batch {args.batch}, a record every {args.every} steps\n")
    rows = [[name, f"{100 * share:.3f} %"] for name, share in values["share"].items()]
    rows.append(["all, sum", f"{100 * sum(values['share'].values()):.3f} %"])
    print(table(["writer", "time in its calls, of a step"], rows))
    print(f"\na step without writers: {1e3 * values['step_seconds']:.2f} ms")
    print(f"a step with all writers over one without: {median:.4f} ({low:.4f} to {high:.4f})")
    every = 100 * values["histogram_steps"]
    print(f"a set of histograms: {values['histogram_steps']:.1f} steps, 1 % if every {every:.0f}")
    if args.json:
        write_json(args.json, argv, info, values)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
