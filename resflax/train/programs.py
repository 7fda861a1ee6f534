"""The programs that a run compiles, with the shapes of their arguments: without data or devices."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.data import InMemorySplit, Split, StreamingSplit
from resflax.data.phases import Phase
from resflax.distributed.engines import Step
from resflax.distributed.ensemble_engine import EnsembleEngine
from resflax.train.device_steps import flat_dataset
from resflax.train.evaluation import compile_evaluation
from resflax.train.image_sizes import resize_in_step
from resflax.train.input_pipeline import (
    batch_seeds,
    compile_device_step,
    fits_on_device,
    further_keys,
    index_rows,
    steps_per_transfer,
)
from resflax.train.run import Run
from resflax.train.trainer import precise_bn_split


class Program(NamedTuple):
    """A step of a run on its devices.

    Attributes:
      name: "train", "evaluation" or "precise BN".
      step: compiled by the run's engine.
      arguments: state and batch, `jax.ShapeDtypeStruct`s with the shardings of the run's arrays.
      examples: number of examples of a call, of all members.
    """

    name: str
    step: Step
    arguments: tuple[Any, Any]
    examples: int

    def lower(self) -> Any:
        """Traces and lowers the step for its devices."""
        return self.step.lower(*self.arguments)  # type: ignore[attr-defined]


def run_programs(run: Run) -> Iterator[Program]:
    """Yields the programs that a run calls once per batch, in the order of their first use."""
    engine, config = run.engine, run.config
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run.with_teacher(run.abstract_state())
    )
    state = engine.put_state(state)
    phase, train = largest_phase(run), run.dataset.train
    if fits_on_device(config.data.placement, run.dataset):
        step = compile_device_step(engine, run.train_step, train, 1, phase)
        data = device_data_shapes(run, phase)
    else:
        step = engine.compile_train(resize_in_step(run.train_step, train, phase))
        if isinstance(train, StreamingSplit) and phase.image_size:
            train = dataclasses.replace(train, size=phase.image_size)
        data = train_batch_shapes(run, train, phase.batch_size)
    yield Program("train", step, (state, data), phase.batch_size * run.size)
    examples = config.batch_size * run.size
    if config.precise_bn_batches:
        batch = train_batch_shapes(run, precise_bn_split(run.dataset), config.batch_size)
        step = engine.compile_eval(run.stats_step)
        yield Program("precise BN", step, (state, batch), examples)
    yield Program("evaluation", compile_evaluation(run), (state, eval_batch_shapes(run)), examples)


def _dtype(split: Split) -> Any:
    """Returns the dtype of a split's images."""
    return split.images.dtype if isinstance(split, InMemorySplit) else np.uint8


def largest_phase(run: Run) -> Phase:
    """Returns the phase whose batches have the most pixels."""

    def pixels(phase: Phase) -> int:
        sides = (phase.image_size,) * 2 if phase.image_size else run.dataset.image_shape[:-1]
        return phase.batch_size * math.prod(sides)

    return max(run.phases, key=pixels)


def train_batch_shapes(run: Run, split: Split, batch_size: int) -> dict[str, Any]:
    """Returns the shapes of the batches that `train_iterator` yields."""
    config, seeds = run.config, batch_seeds(split, run.config)
    rows = (batch_size,) if len(seeds) == 1 else (len(seeds), batch_size)
    batch = {
        "image": jax.ShapeDtypeStruct((*rows, *split.image_shape), _dtype(split)),
        "label": jax.ShapeDtypeStruct(rows, np.int32),
        "index": jax.ShapeDtypeStruct(rows, np.int32),
    }
    batch |= {key: jax.ShapeDtypeStruct(rows, np.int32) for key in further_keys(config)}
    if len(seeds) == 1:
        return run.engine.shard_batch(batch)
    assert isinstance(run.engine, EnsembleEngine)
    return run.engine.shard_member_batch(batch)


def eval_batch_shapes(run: Run) -> dict[str, Any]:
    """Returns the shapes of the batches of an evaluation."""
    rows = run.config.batch_size
    split = getattr(run.dataset, run.dataset.best_by)
    return run.engine.shard_batch(
        {
            "image": jax.ShapeDtypeStruct((rows, *split.image_shape), _dtype(split)),
            "label": jax.ShapeDtypeStruct((rows,), np.int32),
            "weight": jax.ShapeDtypeStruct((rows,), np.float32),
        }
    )


def device_data_shapes(run: Run, phase: Phase) -> dict[str, Any]:
    """Returns the shapes of the data of a step that gathers its batch from a dataset."""
    engine, config, split = run.engine, run.config, run.dataset.train
    members, rows = len(batch_seeds(split, config)), phase.batch_size
    ahead = steps_per_transfer(config.batch_size, members)
    steps = index_rows(min(ahead, phase.stop - phase.start))
    images = jax.ShapeDtypeStruct(split.images.shape, split.images.dtype)
    labels = jax.ShapeDtypeStruct(split.labels.shape, split.labels.dtype)
    if members == 1:
        order = engine.shard_index({"index": jax.ShapeDtypeStruct((steps, rows), np.int32)})
    else:
        assert isinstance(engine, EnsembleEngine)
        index = jax.ShapeDtypeStruct((steps, members, rows), np.int32)
        order = engine.shard_member_index({"index": index})
    for key in further_keys(config):
        order |= engine.shard_index({key: jax.ShapeDtypeStruct((steps, rows), np.int32)})
    return {
        "dataset": engine.replicate(flat_dataset(images, labels)),
        "first_step": engine.replicate(jax.ShapeDtypeStruct((), np.int32)),
        "count": engine.replicate(jax.ShapeDtypeStruct((), np.int32)),
        "order": order,
    }
