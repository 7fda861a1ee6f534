"""A run's outputs as JSON values: the records of `metrics.jsonl`, and `results.json`."""

from typing import Any

import jax
from ml_collections import ConfigDict

from resflax.run.manifest import params_sha256
from resflax.run.trainer_state import TrainerState
from resflax.train.finetune import freeze_patterns
from resflax.train.freeze import count_params, split_params
from resflax.train.run import Run
from resflax.train.state import TrainState


def make_record(
    config: ConfigDict,
    step: int,
    epoch: float,
    split: str,
    values: dict[str, Any],
    learning_rate: float,
    examples_per_second: float,
) -> dict[str, Any]:
    """Returns a record of a training interval or an evaluation.

    Args:
      config: of the run.
      step: number of steps taken.
      epoch: number of passes over the training split.
      split: "train" or "test".
      values: "loss" and "accuracy", and "dropped" if updates were skipped.
      learning_rate: of this step.
      examples_per_second: speed of the interval or the evaluation.
    """
    return {
        "step": step,
        "epoch": round(epoch, 4),
        "split": split,
        "loss": values["loss"],
        "accuracy": values["accuracy"],
        "learning_rate": learning_rate,
        "examples_per_second": round(examples_per_second, 1),
        **({"weights": "ema"} if split == "test" and config.ema_decay else {}),
        **({"dropped": values["dropped"]} if "dropped" in values else {}),
    }


def make_results(
    run: Run,
    trainer_state: TrainerState,
    final: TrainState,
    *,
    seconds: float,
    examples_per_second: float,
) -> dict[str, Any]:
    """Returns the results of a run.

    Args:
      run: the run.
      trainer_state: the host-side state at the end of the run.
      final: the state that was evaluated, as NumPy arrays.
      seconds: wall time, over all processes that resumed the run.
      examples_per_second: speed of training.
    """
    trainable, _ = split_params(final.params, freeze_patterns(run.config, run.model))
    test, devices = trainer_state.test, run.engine.devices
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "test_examples": int(test["count"]),
        "weights": "ema" if run.config.ema_decay else "params",
        "train_examples": len(run.dataset.train),
        "skipped_examples": len(trainer_state.skipped),
        "steps": int(final.step),
        "dropped_steps": trainer_state.dropped,
        "parameters": count_params(final.params),
        "trainable_parameters": count_params(trainable),
        "params_sha256": params_sha256(final.params),
        "wall_seconds": round(seconds, 3),
        "examples_per_second": round(examples_per_second, 1),
        "platform": devices[0].platform,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "jax_version": jax.__version__,
    }
