"""The programs that a run compiles, with the shapes of their arguments: without data or devices."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.data import InMemorySplit, Split
from resflax.distributed.engines import Step
from resflax.distributed.ensemble_engine import EnsembleEngine
from resflax.train.evaluation import compile_evaluation
from resflax.train.input_pipeline import (
    batch_seeds,
    compile_device_step,
    fits_on_device,
    flat_dataset,
    further_keys,
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
    examples = config.batch_size * run.size
    if fits_on_device(config.data.placement, run.dataset):
        shape = run.dataset.train.image_shape
        step, data = compile_device_step(engine, run.train_step, shape), device_data_shapes(run)
    else:
        step = engine.compile_train(run.train_step)
        data = train_batch_shapes(run, run.dataset.train)
    yield Program("train", step, (state, data), examples)
    if config.precise_bn_batches:
        batch = train_batch_shapes(run, precise_bn_split(run.dataset))
        step = engine.compile_eval(run.stats_step)
        yield Program("precise BN", step, (state, batch), examples)
    yield Program("evaluation", compile_evaluation(run), (state, eval_batch_shapes(run)), examples)


def _dtype(split: Split) -> Any:
    """Returns the dtype of a split's images."""
    return split.images.dtype if isinstance(split, InMemorySplit) else np.uint8


def train_batch_shapes(run: Run, split: Split) -> dict[str, Any]:
    """Returns the shapes of the batches that `train_iterator` yields."""
    config, seeds = run.config, batch_seeds(split, run.config)
    rows = (config.batch_size,) if len(seeds) == 1 else (len(seeds), config.batch_size)
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


def device_data_shapes(run: Run) -> dict[str, Any]:
    """Returns the shapes of the data of a step that gathers its batch from a dataset."""
    engine, config, split = run.engine, run.config, run.dataset.train
    members, rows = len(batch_seeds(split, config)), config.batch_size
    steps = min(steps_per_transfer(config, members), run.steps)
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
        "order": order,
    }
