"""`results.json`: the results of a finished run."""

from typing import Any

import jax

from resflax.run.manifest import params_sha256
from resflax.run.trainer_state import TrainerState
from resflax.train.finetune import freeze_patterns
from resflax.train.freeze import count_params, split_params
from resflax.train.run import Run
from resflax.train.state import TrainState


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
