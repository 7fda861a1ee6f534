"""Workdirs with checkpoints of given weights, without training."""

import json
from typing import NamedTuple

import jax
import numpy as np

from helpers.networks import randomized
from resflax.run.checkpoint import Checkpoint
from resflax.run.checkpointer import Checkpointer
from resflax.run.trainer_state import TrainerState
from resflax.train.config import default_config, to_json_dict
from resflax.weights import Preprocess, PretrainedConfig
from resflax.weights.bridge import stack_variables
from resflax.weights.shapes import variable_shapes
from resflax.zoo import get_spec

CLASSES = tuple("abcdefghij")
PREPROCESS = Preprocess(
    size=(8, 8), crop_pct=1.0, interpolation="bilinear", mean=(0.3,), std=(0.2,)
)
CONFIG = PretrainedConfig(get_spec("cifar_resnet8"), 1, PREPROCESS, CLASSES)


class SavedStep(NamedTuple):
    """What to save at a step.

    Attributes:
      step: the step; also the seed of its weights.
      accuracy: accuracy of the evaluation at this step; None if the run did not evaluate.
      ema: whether there are averaged weights.
      precise_bn: whether there are batch statistics of the evaluation.
    """

    step: int
    accuracy: float | None = None
    ema: bool = False
    precise_bn: bool = False


def variables_at(step, config=CONFIG):
    """Returns the raw weights of a step; those of `step + 0.5` are averaged or precise."""
    return randomized(variable_shapes(config.spec, config.channels), seed=int(2 * step))


def write_workdir(path, *saved, config=CONFIG, scan=False, metadata=None, test=None, factors=None):
    """Writes the config and the checkpoints of a run; returns its path.

    `metadata` replaces entries of the metadata; "model" is the record of `config` by default.
    `test` replaces the metrics of the evaluations. With `factors` the run is an ensemble, with one
    member per factor: its weights are `variables_at` times the factor.
    """
    path.mkdir()
    run = to_json_dict(default_config()) | {"dataset": "", "model": "", "epochs": 1}
    (path / "config.json").write_text(json.dumps(run))
    metadata = {"model": config.to_json_dict()} | (metadata or {})
    checkpointer = Checkpointer(path / "checkpoints", len(saved) + 1)
    for row in saved:
        raw, evaluated = variables_at(row.step, config), variables_at(row.step + 0.5, config)
        if scan:
            raw, evaluated = stack_variables(raw), stack_variables(evaluated)
        if factors is not None:
            raw, evaluated = jax.tree.map(lambda a: np.multiply.outer(factors, a), (raw, evaluated))
        state = {
            "step": np.int32(row.step),
            **raw,
            "ema": evaluated["params"] if row.ema else {},
            "opt_state": (jax.tree.map(np.zeros_like, raw["params"]), {}),
        }
        stats = evaluated["batch_stats"] if row.precise_bn else {}
        metrics = {} if row.accuracy is None else test or {"accuracy": row.accuracy}
        trainer_state = TrainerState(evaluated=row.step if metrics else 0, test=metrics)
        content = {"config": {"precise_bn_batches": 16 * row.ema}} | metadata
        content["trainer_state"] = trainer_state.as_dict()
        tree = {"state": state, "eval_batch_stats": stats}
        checkpointer.save(Checkpoint(row.step, tree, content), row.accuracy)
    checkpointer.close()
    return path
