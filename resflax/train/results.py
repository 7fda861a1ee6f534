"""What a run comes to, as `results.json` tells it."""

from typing import TYPE_CHECKING, Any

import jax

from resflax.run.trainer_state import TrainerState
from resflax.run.workdir import params_sha256
from resflax.train.state import TrainState

if TYPE_CHECKING:
    from resflax.train.trainer import Trainer


def make_results(
    trainer: "Trainer", position: TrainerState, final: TrainState, *, seconds: float, speed: float
) -> dict[str, Any]:
    """The results of a run at its end.

    Args:
      trainer: what trained.
      position: where the run is: at its end.
      final: the state that was evaluated, as NumPy arrays.
      seconds: that the run took, all its starts together.
      speed: examples a second, in training.
    """
    test, devices = position.test, trainer.engine.devices
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "test_examples": int(test["count"]),
        "weights": "ema" if trainer.config.ema_decay else "params",
        "train_examples": len(trainer.dataset.train),
        "skipped_examples": len(position.skipped),
        "steps": int(final.step),
        "dropped_steps": position.dropped,
        "parameters": sum(x.size for x in jax.tree.leaves(final.params)),
        "params_sha256": params_sha256(final.params),
        "wall_seconds": round(seconds, 3),
        "examples_per_second": round(speed, 1),
        "platform": devices[0].platform,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "jax_version": jax.__version__,
    }
