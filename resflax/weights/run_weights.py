"""Weights of the networks in a run's checkpoints, as the run evaluated them."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from resflax.errors import Report, UserError
from resflax.nn import Spec
from resflax.nn.members import split_members
from resflax.weights.bridge import Variables
from resflax.weights.pretrained_config import PretrainedConfig
from resflax.weights.run_checkpoints import (
    BATCH_STATS,
    EMA,
    EVAL_STATS,
    PARAMS,
    RunCheckpoint,
    read_checkpoints,
)
from resflax.weights.run_history import RunHistory, initial_parameters, total_steps
from resflax.weights.workdirs import BEST, LAST, RunName


class RunWeights(NamedTuple):
    """Weights of one network of one checkpoint of a run.

    Attributes:
      config: architecture, preprocessing and class names.
      variables: variables of the model.
      source: one line that describes the weights.
      evaluation: "steps" of the checkpoint, and the "test_accuracy" and "test_loss" of the network
        at this step if the run evaluated there; for a member, those of its ensemble as well, as
        "ensemble_accuracy" and "ensemble_loss". A run with a validation split has
        "validation_accuracy", ..., and those of the test split at its end only.
      where: name of this network alone, such as "runs/x@200", or "runs/x#2" for a member.
      history: how it was trained.
    """

    config: PretrainedConfig
    variables: Variables
    source: str
    evaluation: dict[str, float]
    where: str
    history: RunHistory


def read_networks(name: RunName, report: Report, spec: Spec | None = None) -> list[RunWeights]:
    """Reads the weights that a run evaluated: averaged if it averages, with precise batch norm.

    An efficient ensemble (`Spec.ensemble`) is read as the single networks that its members are.

    Args:
      name: the workdir, its checkpoints and members. Members that diverged and were dropped are
        read only if they are named.
      report: called with a message for every corrupt checkpoint that is skipped for another one,
        and for every member that is left out.
      spec: the architecture, whose functions replace those that cannot be imported.

    Returns:
      The networks: by checkpoint as `read_checkpoints` does, then by member.

    Raises:
      UserError: if a checkpoint is missing, corrupt or does not record its model, or there is no
        such member.
    """
    checkpoints = read_checkpoints(name, lambda found: _read(name, found, report, spec), report)
    return [weights for checkpoint in checkpoints for weights in checkpoint]


def _read(
    name: RunName, checkpoint: RunCheckpoint, report: Report, spec: Spec | None
) -> list[RunWeights]:
    """Reads the networks of a verified checkpoint.

    Raises:
      CorruptCheckpointError: if an array differs from the saved one.
      UserError: if its model is not recorded, there is no such member, or its averaged weights have
        no batch statistics.
    """
    from resflax.run.checkpoint import list_steps, read_subtrees  # imports Orbax

    path, step = name.folder, checkpoint.step
    config = _get_config(path, checkpoint, spec)
    ensemble = _get_ensemble(path, config.spec, checkpoint)
    members = _choose_members(path, name.members, ensemble, report)
    params = EMA if checkpoint.has(EMA) else PARAMS
    stats = EVAL_STATS if checkpoint.has(EVAL_STATS) else BATCH_STATS
    if checkpoint.lacks_batch_stats:
        raise UserError(
            f"{path}: the checkpoint at step {step} has averaged weights without batch statistics"
            f" for them, as the run did not evaluate there: use {path}@best, or @STEP for an"
            " evaluated step"
        )
    trees = read_subtrees(path / "checkpoints", step, (params, stats), checkpoint.checksums)
    variables = {"params": trees[params], "batch_stats": trees[stats]}
    variables = {collection: tree for collection, tree in variables.items() if tree}
    notes = ", averaged weights" if params == EMA else ""
    notes += ", precise batch norm" if stats == EVAL_STATS else ""
    networks, last_step = [variables], max(list_steps(path / "checkpoints"), default=step)
    if config.spec.ensemble != "none":
        networks = split_members(config.spec, variables)
        config = config._replace(spec=config.spec.member)
    elif ensemble is not None:
        networks = [
            jax.tree.map(lambda array, i=i: array[i], variables) for i in range(ensemble["size"])
        ]
    return [
        RunWeights(
            config,
            networks[member or 0],
            f"{path}, {_describe(checkpoint, name.checkpoint, ensemble, member)}{notes};"
            " normalization of the run",
            checkpoint.evaluation(member),
            _name_alone(name, step, member),
            _history(checkpoint, ensemble, member, last_step),
        )
        for member in members
    ]


def _history(
    checkpoint: RunCheckpoint, ensemble: dict[str, Any] | None, member: int | None, last_step: int
) -> RunHistory:
    metadata = checkpoint.metadata
    seeds = ensemble.get("seeds") if ensemble else None
    initial = initial_parameters(metadata["config"], seeds, member)
    return RunHistory(checkpoint.step, last_step, total_steps(metadata), initial)


def _name_alone(name: RunName, step: int, member: int | None) -> str:
    """Returns the name of one network, with the step if `name` has several checkpoints."""
    checkpoint = f"@{step}" if name.names_several_checkpoints else f"@{name.checkpoint}"
    index = "" if member is None else f"#{member}"
    return f"{name.folder}{'' if name.checkpoint == LAST else checkpoint}{index}"


def _get_ensemble(path: Path, spec: Spec, checkpoint: RunCheckpoint) -> dict[str, Any] | None:
    """Returns size, seeds (if the members have any) and dropped members; None for one network.

    Raises:
      UserError: if the members of the run are efficient ensembles themselves.
    """
    if spec.members == 1:
        return checkpoint.ensemble
    if checkpoint.ensemble is not None:
        raise UserError(
            f"{path} is an ensemble of networks that are ensembles (spec.ensemble is"
            f" {spec.ensemble!r}): expected a run with config.ensemble.size=1 or spec.ensemble"
            " 'none'"
        )
    return {"size": spec.members, "dropped": []}


def _choose_members(
    path: Path, chosen: tuple[int, ...] | None, ensemble: dict[str, Any] | None, report: Report
) -> tuple[int, ...] | tuple[None]:
    """Returns the indices of the members to read; (None,) for a run of one network.

    Raises:
      UserError: if there is no such member, or all were dropped.
    """
    if ensemble is None:
        if chosen is None:
            return (None,)
        raise UserError(
            f"{path} is a run of one network, and # chooses members of an ensemble: expected {path}"
        )
    size, dropped = ensemble["size"], ensemble["dropped"]
    if chosen is None:
        for member in dropped:
            report(f"{path}: left out member {member}, which diverged")
        finite = tuple(member for member in range(size) if member not in dropped)
        if not finite:
            raise UserError(f"{path}: all {size} members diverged: train the run again")
        return finite
    for member in chosen:
        if member >= size:
            raise UserError(
                f"{path} has no member {member}: expected an index from 0 to {size - 1}"
            )
        if member in dropped:
            report(f"{path}: member {member} diverged: these are its last finite weights")
    return chosen


def _get_config(path: Path, checkpoint: RunCheckpoint, spec: Spec | None) -> PretrainedConfig:
    """Returns the record of the model in a checkpoint.

    Raises:
      UserError: if it has none.
    """
    step = checkpoint.step
    if "model" not in checkpoint.metadata:
        raise UserError(
            f"{path}: the checkpoint at step {step} was written by an earlier version, which did"
            " not record its model: train the run again"
        )
    if checkpoint.metadata["model"] is None:
        raise UserError(
            f"{path} trained a module of your own, which a checkpoint does not describe: read it"
            " with resflax.run.checkpoint.restore_latest"
        )
    try:
        return PretrainedConfig.from_json_dict(
            checkpoint.metadata["model"], import_functions=True, replacement=spec
        )
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path}: the record of the model at step {step} is not valid: {e!r}"
        ) from e


def _describe(
    checkpoint: RunCheckpoint, name: str, ensemble: dict[str, Any] | None, member: int | None
) -> str:
    """Returns which checkpoint and member the weights are."""
    text = f"{'last checkpoint' if name == LAST else 'checkpoint'} (step {checkpoint.step})"
    if name == BEST:
        split = "validation" if "validation" in checkpoint.metrics else "test"
        text = (
            f"best checkpoint (step {checkpoint.step}, accuracy {checkpoint.accuracy:.4f} on the"
            f" {split} split, by which it was chosen)"
        )
    if member is None or ensemble is None:
        return text
    seed = f" (seed {ensemble['seeds'][member]})" if "seeds" in ensemble else ""
    return f"{text}, member {member} of {ensemble['size']}{seed}"
