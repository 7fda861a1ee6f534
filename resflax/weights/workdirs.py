"""Weights of a run's checkpoints, as the run evaluated them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from resflax.errors import UserError
from resflax.run.manifest import CorruptCheckpointError, verify_manifest
from resflax.weights.bridge import Variables
from resflax.weights.pretrained_config import PretrainedConfig

# Paths of the trees in a checkpoint; a tree that is empty was not saved.
PARAMS, EMA = "state/params", "state/ema"
BATCH_STATS, EVAL_STATS = "state/batch_stats", "eval_batch_stats"
LAST, BEST = "last", "best"
# Called with the step of a corrupt checkpoint and what is wrong with it; may raise `UserError`.
Skip = Callable[[int, CorruptCheckpointError], None]


class RunWeights(NamedTuple):
    """Weights of one checkpoint of a run.

    Attributes:
      config: architecture, preprocessing and class names.
      variables: variables of the model.
      source: one line that describes the weights.
      evaluation: "steps" of the checkpoint, and the "test_accuracy" and "test_loss" of the run at
        this step if it evaluated there.
    """

    config: PretrainedConfig
    variables: Variables
    source: str
    evaluation: dict[str, float]


class _Checkpoint(NamedTuple):
    """A valid checkpoint: its step, checksums of its arrays and metadata."""

    step: int
    checksums: dict[str, str]
    metadata: dict[str, Any]

    def has(self, path: str) -> bool:
        """Returns whether the tree with this path was saved."""
        return any(name.startswith(f"{path}/") for name in self.checksums)

    @property
    def test(self) -> dict[str, float]:
        """Metrics of the run's evaluation at this step; {} if it did not evaluate here."""
        state = self.metadata["trainer_state"]
        return dict(state["test"]) if state["evaluated"] == self.step else {}

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the run's evaluation at this step; None if it did not evaluate here."""
        return self.test.get("accuracy")

    @property
    def lacks_batch_stats(self) -> bool:
        """Whether it has averaged weights, but not the batch statistics computed for them.

        Such checkpoints are saved between two evaluations, which compute the statistics. Frozen
        statistics are the same for averaged weights.
        """
        config = self.metadata["config"]
        is_frozen = config.get("freeze_batch_norm") or config.get("batch_norm") == "frozen"
        needs_own = config.get("precise_bn_batches", 0) > 0 and not is_frozen
        return needs_own and self.has(EMA) and self.has(BATCH_STATS) and not self.has(EVAL_STATS)


def is_workdir(path: Path) -> bool:
    """Returns whether a path is the directory of a run, also of one without a checkpoint yet."""
    if (path / "checkpoints").is_dir():
        return True
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"dataset", "model", "epochs"} <= config.keys()


def split_checkpoint(where: str) -> tuple[Path, str] | None:
    """Splits "DIR@CHECKPOINT" of a run into its parts; the default is the last checkpoint.

    Returns:
      The workdir and "last", "best" or a step; None if `where` does not name a run.

    Raises:
      UserError: if a checkpoint is given, but no workdir.
    """
    if Path(where).exists():
        return (Path(where), LAST) if is_workdir(Path(where)) else None
    folder, at, checkpoint = where.rpartition("@")
    if not at:
        return None
    if not Path(folder).is_dir():
        raise UserError(
            f"{where}: folder not found: {folder}; for a revision of a Hub repository, use"
            f" --revision={checkpoint}"
        )
    if not is_workdir(Path(folder)):
        raise UserError(f"{where}: {folder} is not the workdir of a run, which @ needs")
    return Path(folder), checkpoint


def read_workdir(path: Path, checkpoint: str, report: Callable[[str], None]) -> RunWeights:
    """Reads the weights that a run evaluated: averaged if it averages, with precise batch norm.

    Args:
      path: the workdir.
      checkpoint: "last", "best" (by the accuracy of the run's own evaluations) or a step.
      report: called with a message for every corrupt checkpoint that is skipped for another one.

    Raises:
      UserError: if there is no valid checkpoint, not this one, or it does not record its model.
    """
    skipped: list[str] = []

    def skip(step: int, error: CorruptCheckpointError) -> None:
        message = f"the checkpoint at step {step} of {path} is corrupt: {error}"
        if checkpoint not in (LAST, BEST):
            raise UserError(message) from error
        skipped.append(message)

    for step in _list_candidates(path, checkpoint, skip):
        try:
            weights = _read(path, _verify(path, step), checkpoint)
        except CorruptCheckpointError as e:
            skip(step, e)
            continue
        for message in skipped:
            report(f"warning: skipped, {message}")
        return weights
    reasons = "".join(f"; {message}" for message in skipped)
    raise UserError(f"no valid checkpoint in {path / 'checkpoints'}: train the run again{reasons}")


def _list_candidates(path: Path, checkpoint: str, skip: Skip) -> list[int]:
    """Returns the steps that `checkpoint` can mean, the preferred one first."""
    from resflax.run.checkpoint import list_steps  # imports Orbax

    steps = list_steps(path / "checkpoints")
    if not steps:
        raise UserError(f"no checkpoint in {path}: train the run first")
    if checkpoint == LAST:
        return steps
    if checkpoint == BEST:
        return _sort_by_accuracy(path, steps, skip)
    if checkpoint not in map(str, steps):
        existing = ", ".join(map(str, sorted(steps)))
        raise UserError(
            f"{path} has no checkpoint {checkpoint!r}: expected last, best or a step: {existing}"
        )
    return [int(checkpoint)]


def _sort_by_accuracy(path: Path, steps: list[int], skip: Skip) -> list[int]:
    """Returns the steps at which the run evaluated, the highest accuracy first."""
    accuracies = {}
    for step in steps:
        try:
            accuracies[step] = _verify(path, step, only_metadata=True).accuracy
        except CorruptCheckpointError as e:
            skip(step, e)
    evaluated = {step: a for step, a in accuracies.items() if a is not None}
    if accuracies and not evaluated:
        raise UserError(f"no checkpoint of {path} was evaluated: use {path}@last")
    return sorted(evaluated, key=lambda step: evaluated[step], reverse=True)


def _verify(path: Path, step: int, *, only_metadata: bool = False) -> _Checkpoint:
    """Verifies the files of a checkpoint and reads its metadata.

    Raises:
      CorruptCheckpointError: if a file differs from the manifest, or cannot be read.
    """
    from resflax.run.checkpoint import ARRAYS, read_metadata

    folder = path / "checkpoints"
    checksums = verify_manifest(folder / str(step), skip=f"{ARRAYS}/" if only_metadata else "")
    try:
        return _Checkpoint(step, checksums, read_metadata(folder, step))
    except OSError as e:  # a run that goes on has deleted it
        raise CorruptCheckpointError(f"it cannot be read: {e.strerror}") from e


def _read(path: Path, checkpoint: _Checkpoint, name: str) -> RunWeights:
    """Reads the weights of a verified checkpoint.

    Raises:
      CorruptCheckpointError: if an array differs from the saved one.
      UserError: if its model is not recorded, or its averaged weights have no batch statistics.
    """
    from resflax.run.checkpoint import read_subtrees

    config = _get_config(path, checkpoint)
    params = EMA if checkpoint.has(EMA) else PARAMS
    stats = EVAL_STATS if checkpoint.has(EVAL_STATS) else BATCH_STATS
    if checkpoint.lacks_batch_stats:
        raise UserError(
            f"{path}: the checkpoint at step {checkpoint.step} has averaged weights without batch"
            f" statistics for them, as the run did not evaluate there: use {path}@best, or @STEP"
            " for an evaluated step"
        )
    trees = read_subtrees(
        path / "checkpoints", checkpoint.step, (params, stats), checkpoint.checksums
    )
    variables = {"params": trees[params], "batch_stats": trees[stats]}
    source = f"{path}, {_describe(checkpoint, name)}"
    source += ", averaged weights" if params == EMA else ""
    source += ", precise batch norm" if stats == EVAL_STATS else ""
    variables = {collection: tree for collection, tree in variables.items() if tree}
    test = {f"test_{key}": value for key, value in checkpoint.test.items()}
    evaluation = {"steps": checkpoint.step, **test}
    return RunWeights(config, variables, f"{source}; normalization of the run", evaluation)


def _get_config(path: Path, checkpoint: _Checkpoint) -> PretrainedConfig:
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
        return PretrainedConfig.from_json_dict(checkpoint.metadata["model"])
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path}: the record of the model at step {step} is not valid: {e!r}"
        ) from e


def _describe(checkpoint: _Checkpoint, name: str) -> str:
    if name == BEST:
        return (
            f"best checkpoint (step {checkpoint.step}, accuracy {checkpoint.accuracy:.4f} on the"
            " test split, by which it was chosen)"
        )
    return f"{'last checkpoint' if name == LAST else 'checkpoint'} (step {checkpoint.step})"
