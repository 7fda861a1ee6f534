"""A run's outputs as JSON values: the records of `metrics.jsonl`, and `results.json`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resflax.run.manifest import params_sha256
from resflax.run.trainer_state import METRICS, TrainerState
from resflax.train.averaging import evaluated_weights
from resflax.train.ensemble import differing_values, is_ensemble, member_seeds
from resflax.train.finetune import freeze_patterns
from resflax.train.freeze import count_params, split_params
from resflax.train.monitor import excluded_members
from resflax.train.run import Run
from resflax.train.state import TrainState

# Keys of records and results that differ between two runs of the same config.
MEASURED = (
    "wall_seconds",
    "examples_per_second",
    "host_memory_mib",
    "device_memory_mib",
    "data_wait",
)


def make_record(
    config: ConfigDict,
    step: int,
    epoch: float,
    split: str,
    values: dict[str, Any],
    learning_rate: float,
    examples_per_second: float,
    resources: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns a record of a training interval or an evaluation.

    Args:
      config: of the run.
      step: number of steps taken.
      epoch: number of passes over the training split.
      split: "train", "validation" or "test".
      values: "loss" and "accuracy"; "dropped" if updates were skipped; for an ensemble "members",
        with the lists "loss" and "accuracy".
      learning_rate: of this step, mean over the members.
      examples_per_second: speed of the interval or the evaluation.
      resources: memory and waiting times, see `memory_use` and `WaitMeter`.
    """
    weights = evaluated_weights(config)
    return {
        "step": step,
        "epoch": round(epoch, 4),
        "split": split,
        "loss": values["loss"],
        "accuracy": values["accuracy"],
        "learning_rate": learning_rate,
        "examples_per_second": round(examples_per_second, 1),
        **resources,
        **({"weights": weights} if split != "train" and weights != "params" else {}),
        **{key: values[key] for key in ("dropped", "members") if key in values},
    }


def make_results(
    run: Run,
    trainer_state: TrainerState,
    final: TrainState,
    *,
    seconds: float,
    examples_per_second: float,
    data_wait: float,
) -> dict[str, Any]:
    """Returns the results of a run.

    Args:
      run: the run.
      trainer_state: the host-side state at the end of the run.
      final: the state that was evaluated, as NumPy arrays.
      seconds: wall time, over all processes that resumed the run.
      examples_per_second: speed of training.
      data_wait: share of the training time in which the devices waited for data.
    """
    trainable, _ = split_params(final.params, freeze_patterns(run.config, run.model))
    test, validation = trainer_state.test, trainer_state.validation
    devices, dataset = run.engine.devices, run.dataset
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "test_examples": int(test["count"]),
        **{f"validation_{key}": validation[key] for key in METRICS if validation},
        **_eval_set_results(trainer_state),
        "best_step": trainer_state.best_step,
        "best_by": dataset.best_by,
        f"best_{dataset.best_by}_accuracy": trainer_state.best,
        "splits": dataset.names._asdict() | {"validation": dataset.names.validation or None},
        "weights": evaluated_weights(run.config),
        "train_examples": len(dataset.train),
        "skipped_examples": len(trainer_state.skipped),
        "steps": int(np.max(final.step)),
        "dropped_steps": sum(trainer_state.dropped),
        "parameters": count_params(final.params),
        "trainable_parameters": count_params(trainable),
        "params_sha256": params_sha256(final.params),
        "wall_seconds": round(seconds, 3),
        "examples_per_second": round(examples_per_second, 1),
        "data_wait": round(data_wait, 4),
        "platform": devices[0].platform,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "jax_version": jax.__version__,
        **_ensemble_results(run, trainer_state),
    }


def describe_accuracies(accuracies: Mapping[str, float | None]) -> str:
    """Returns the accuracy of each split in words, without those that were not evaluated (None).

    >>> describe_accuracies({"validation": None, "test": 0.5})
    'test accuracy 0.5000'
    """
    return ", ".join(
        f"{split} accuracy {value:.4f}" for split, value in accuracies.items() if value is not None
    )


def _eval_set_results(trainer_state: TrainerState) -> dict[str, Any]:
    """Returns "eval_sets", the metrics of the further sets of a run; {} without any."""
    rows = {
        name: {"accuracy": m["accuracy"], "loss": m["loss"], "examples": int(m["count"])}
        for name, m in trainer_state.eval_sets.items()
    }
    return {"eval_sets": rows} if rows else {}


def _ensemble_results(run: Run, trainer_state: TrainerState) -> dict[str, Any]:
    """Returns "members" and "ensemble", the metrics of an ensemble; {} for a single network.

    The members of one network, an efficient ensemble, have no seeds.
    """
    test = trainer_state.test
    if "members" not in test:
        return {}
    columns = zip(test["members"]["accuracy"], test["members"]["loss"], strict=True)
    members = [{"accuracy": accuracy, "nll": nll} for accuracy, nll in columns]
    if is_ensemble(run.config):
        values, dropped = differing_values(run.config), excluded_members(run, trainer_state)
        for k, seed in enumerate(member_seeds(run.config)):
            own = {"seed": seed} | {name: row[k] for name, row in values.items()}
            members[k] = own | members[k]
            if step := trainer_state.diverged_at[k]:
                members[k] |= {"diverged_at": step, "dropped": k in dropped}
    return {"members": members, "ensemble": test["ensemble"]}


def member_labels(config: ConfigDict) -> list[str]:
    """Returns a name for each member from the values in which they differ; [] without any.

    >>> from resflax.train import default_config
    >>> config = default_config()
    >>> config.ensemble.size, config.ensemble.learning_rate = 2, (0.1, 0.02)
    >>> member_labels(config)
    ['learning_rate 0.1', 'learning_rate 0.02']
    """
    values = differing_values(config)
    rows = zip(*values.values(), strict=True)
    return [", ".join(f"{k} {v:g}" for k, v in zip(values, row, strict=True)) for row in rows]
