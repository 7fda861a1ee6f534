"""Passes of `resflax evaluate` over splits, with progress."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from resflax.cli.evaluate_data import unlabeled
from resflax.cli.evaluate_plan import Plan
from resflax.data import StreamingSplit
from resflax.data.source import Source
from resflax.distributed.processes import is_main_process
from resflax.evaluate.arrays import ArraySplit
from resflax.evaluate.classes import LabelMap
from resflax.evaluate.classifier import MemberClassifier, full_batch_size
from resflax.evaluate.corruptions import Condition, evaluate_corrupted
from resflax.evaluate.run import Evaluated, Reduction, evaluate_split
from resflax.progress import ProgressMeter
from resflax.weights.array_preprocess import ArrayPreprocess


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


class Runner:
    """Evaluates splits with the members, the preprocessing and the views of a plan.

    Attributes:
      speed: of the passes over the split itself.
    """

    def __init__(self, plan: Plan, args: argparse.Namespace, classify: MemberClassifier) -> None:
        self.plan, self.args, self.classify = plan, args, classify
        self.speed = Speed()

    def test(self, reduction: Reduction) -> Evaluated:
        """Evaluates the split."""
        plan = self.plan
        self.speed = Speed()
        return self._run(
            plan.source, plan.label_map, plan.on_bad_example, reduction, "evaluating", self.speed
        )

    def held_out(self, reduction: Reduction) -> Evaluated:
        """Evaluates the held-out training data."""
        data = self.plan.held_out
        assert data is not None
        return self._run(
            data.source, data.label_map, data.on_bad_example, reduction, "held-out data", Speed()
        )

    def ood(self, name: str, reduction: Reduction) -> Evaluated:
        """Evaluates another dataset, whose labels have no meaning here."""
        source = self.plan.ood[name]
        label_map = unlabeled(source, self.plan.label_map)
        on_bad_example = self.args.on_bad_example or "raise"
        return self._run(source, label_map, on_bad_example, reduction, name, Speed())

    def corrupted(
        self, conditions: Sequence[Condition], reduction: Reduction
    ) -> dict[Condition, Evaluated]:
        """Evaluates the split under corruptions."""
        plan = self.plan
        split = self._open(plan.source, plan.on_bad_example)
        total = len(split) * len(conditions)
        meter = ProgressMeter(total, interval=5.0, delay=5.0, silent=not is_main_process())
        try:
            return evaluate_corrupted(
                self.classify.members,
                split,
                plan.views,
                plan.label_map,
                reduction,
                conditions,
                seed=plan.corruptions.seed,
                batch_size=full_batch_size(self.args.batch_size, len(split)),
                num_workers=self.args.num_workers,
                on_batch=lambda examples, condition: meter.update(examples, condition.name),
            )
        finally:
            meter.close()

    def _open(self, source: Source, on_bad_example: str) -> Any:
        """Opens a split: a `StreamingSplit`, or an `ArraySplit` for a network of arrays."""
        preprocess = self.plan.preprocess
        if isinstance(preprocess, ArrayPreprocess):
            return ArraySplit(source, preprocess)
        return StreamingSplit(
            source,
            max(preprocess.size),
            preprocess.channels,
            eval_transform=self.plan.views.transform(preprocess),
            on_bad_example=on_bad_example,
        )

    def _run(
        self,
        source: Source,
        label_map: LabelMap,
        on_bad_example: str,
        reduction: Reduction,
        text: str,
        speed: Speed,
    ) -> Evaluated:
        split = self._open(source, on_bad_example)
        meter = ProgressMeter(len(split), interval=5.0, delay=5.0, silent=not is_main_process())

        def on_batch(examples: int) -> None:
            speed.add(examples)
            meter.update(examples, text)

        try:
            return evaluate_split(
                self.classify.members,
                split,
                self.plan.views,
                label_map,
                reduction,
                batch_size=full_batch_size(self.args.batch_size, len(split)),
                num_workers=self.args.num_workers,
                on_batch=on_batch,
            )
        finally:
            meter.close()
