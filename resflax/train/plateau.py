"""`schedule=plateau`: a lower learning rate where evaluations no longer improve.

The rules are those of `torch.optim.lr_scheduler.ReduceLROnPlateau` with `mode="max"`. The accuracy
is that on the split that chooses the best checkpoint, of each member of an ensemble.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.run.trainer_state import TrainerState
from resflax.train.builders import warmup_steps
from resflax.train.ensemble import is_ensemble
from resflax.train.run import Run
from resflax.train.state import TrainState


def add_evaluation(
    state: TrainerState,
    accuracies: Sequence[float],
    step: int,
    *,
    patience: int,
    threshold: float,
) -> None:
    """Adds an evaluation to what `schedule=plateau` remembers of them, changed here.

    An accuracy above `best * (1 + threshold)` is an improvement. The evaluation after `patience`
    ones without improvement, if it has none either, is one after which the rate is lower.

    Args:
      state: its fields `plateau_best`, `plateau_bad` and `reduced_at` change.
      accuracies: of each network, 0 to 1.
      step: number of steps taken.
      patience: number of evaluations without improvement that change nothing.
      threshold: relative.

    >>> state = TrainerState()
    >>> for step, accuracy in enumerate([0.5, 0.5, 0.6, 0.6, 0.6]):
    ...     add_evaluation(state, [accuracy], step, patience=1, threshold=0.0)
    >>> state.reduced_at
    [[4]]
    """
    for k, accuracy in enumerate(accuracies):
        if accuracy > state.plateau_best[k] * (1 + threshold):
            state.plateau_best[k], state.plateau_bad[k] = accuracy, 0
        else:
            state.plateau_bad[k] += 1
        if state.plateau_bad[k] > patience:
            state.plateau_bad[k] = 0
            state.reduced_at[k].append(step)


def follow_plateau(
    state: TrainState, run: Run, trainer_state: TrainerState, step: int
) -> TrainState:
    """Returns the state to train from after an evaluation, with its number of reductions.

    Evaluations in the warm-up are not counted, as in timm.

    Args:
      state: on the devices of `run.engine`.
      run: the run; with another schedule, nothing changes.
      trainer_state: has the metrics of the evaluation; changed here.
      step: number of steps taken.
    """
    config = run.config
    done = run.phases.examples_before(step) / config.batch_size
    in_warmup = done <= warmup_steps(config, len(run.dataset.train))
    if config.schedule != "plateau" or in_warmup:
        return state
    metrics, several = trainer_state.evaluation, is_ensemble(config)
    add_evaluation(
        trainer_state,
        metrics["members"]["accuracy"] if several else [metrics["accuracy"]],
        step,
        patience=config.plateau_patience,
        threshold=config.plateau_threshold,
    )
    counts = np.array(trainer_state.reductions(step + 1), np.int32)
    reductions = run.engine.put_state(counts if several else counts[0])
    return dataclasses.replace(state, reductions=reductions)


def describe_plateau(config: ConfigDict, dataset: Dataset) -> tuple[str, ...]:
    """Returns a line if the learning rate depends on the test split; else none."""
    if config.schedule != "plateau" or dataset.best_by != "test":
        return ()
    return (
        "schedule=plateau: the learning rate follows the accuracy on the test split, since there is"
        " no validation split: --config.data.validation=0.1 holds one out",
    )
