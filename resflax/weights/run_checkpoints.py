"""Checkpoints of a run, chosen by name and verified."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from resflax.errors import Report, UserError
from resflax.run.manifest import CorruptCheckpointError, verify_manifest
from resflax.weights.workdirs import BEST, CYCLES, LAST, RunName, check_unique

# Paths of the trees in a checkpoint; a tree that is empty was not saved.
PARAMS, EMA = "state/params", "state/ema"
BATCH_STATS, EVAL_STATS = "state/batch_stats", "eval_batch_stats"
# Called with the step of a corrupt checkpoint and what is wrong with it; may raise `UserError`.
Skip = Callable[[int, CorruptCheckpointError], None]
T = TypeVar("T")


class RunCheckpoint(NamedTuple):
    """A valid checkpoint: its step, checksums of its arrays and metadata."""

    step: int
    checksums: dict[str, str]
    metadata: dict[str, Any]

    def has(self, path: str) -> bool:
        """Returns whether the tree with this path was saved."""
        return any(name.startswith(f"{path}/") for name in self.checksums)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics of the run's evaluations at this step, of the splits "validation" and "test"."""
        state = self.metadata["trainer_state"]
        validation, has_evaluated = state.get("validation"), state["evaluated"] == self.step
        if not validation:
            return {"test": dict(state["test"])} if has_evaluated and state["test"] else {}
        tested = {"test": dict(state["test"])} if state["tested"] == self.step else {}
        return ({"validation": dict(validation)} if has_evaluated else {}) | tested

    @property
    def accuracy(self) -> float | None:
        """Accuracy by which "best" is chosen; None if the run did not evaluate at this step."""
        metrics = self.metrics
        return metrics.get("validation", metrics.get("test", {})).get("accuracy")

    @property
    def ensemble(self) -> dict[str, Any] | None:
        """The ensemble's "size", "seeds" and "dropped"; None for a run of one network."""
        return self.metadata.get("ensemble")

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

    def evaluation(self, member: int | None) -> dict[str, float]:
        """Returns the metrics of a member, see `RunWeights`; None for a run of one network.

        Their names begin with that of the split, and of a member's ensemble with "ensemble_" (test
        split) or "ensemble_validation_".
        """
        numbers: dict[str, Any] = {}
        for split, metrics in self.metrics.items():
            own = metrics
            if member is not None:
                own = {key: values[member] for key, values in metrics.get("members", {}).items()}
                prefix = "ensemble_" if split == "test" else f"ensemble_{split}_"
                numbers |= {f"{prefix}{key}": value for key, value in metrics.items()}
            numbers |= {f"{split}_{key}": value for key, value in own.items()}
        return {
            "steps": self.step,
            **{key: value for key, value in numbers.items() if isinstance(value, int | float)},
        }


def read_checkpoints(name: RunName, read: Callable[[RunCheckpoint], T], report: Report) -> list[T]:
    """Returns the results of `read` for the checkpoints that a name means.

    Args:
      name: the workdir and its checkpoints. "best" is by the accuracy of the run's own evaluations.
      read: called with each verified checkpoint; may raise `CorruptCheckpointError`.
      report: called with a message for every corrupt checkpoint that is skipped for another one.

    Returns:
      The results in the order of the name; for "last:3" by step.

    Raises:
      UserError: if a checkpoint is missing or corrupt.
    """
    path, skipped, found = name.folder, list[str](), list[T]()
    choice = _choose_steps(name)

    def skip(step: int, error: CorruptCheckpointError) -> None:
        message = f"the checkpoint at step {step} of {path} is corrupt: {error}"
        if choice.is_strict:
            raise UserError(message) from error
        skipped.append(message)

    steps = _sort_by_accuracy(path, choice.steps, skip) if choice.is_best else choice.steps
    for step in steps:
        try:
            found.append(read(_verify(path, step)))
        except CorruptCheckpointError as e:
            skip(step, e)
        if len(found) == choice.number:
            for message in skipped:
                report(f"warning: skipped, {message}")
            return found if choice.is_strict else found[::-1]
    reasons = "".join(f"; {message}" for message in skipped)
    number = f"only {len(found)} valid checkpoints" if found else "no valid checkpoint"
    raise UserError(f"{number} in {path / 'checkpoints'}: train the run again{reasons}")


class _Choice(NamedTuple):
    """The steps that a name can mean.

    Attributes:
      steps: candidates, the preferred one first.
      number: number of checkpoints to read.
      is_strict: whether a corrupt checkpoint is an error; else the next one replaces it.
      is_best: whether the preference is by accuracy.
    """

    steps: list[int]
    number: int = 1
    is_strict: bool = False
    is_best: bool = False


def _choose_steps(name: RunName) -> _Choice:
    """Returns the steps that the checkpoint of a name can mean.

    Raises:
      UserError: if the run has no such checkpoints.
    """
    from resflax.run.checkpoint import list_steps  # imports Orbax

    path, checkpoint = name.folder, name.checkpoint
    steps = list_steps(path / "checkpoints")
    if not steps:
        raise UserError(f"no checkpoint in {path}: train the run first")
    if checkpoint in (LAST, BEST):
        return _Choice(steps, is_best=checkpoint == BEST)
    if match := re.fullmatch(rf"{LAST}:([0-9]+)", checkpoint):
        count = int(match[1])
        if not 1 <= count <= len(steps):
            raise UserError(
                f"{path} has {len(steps)} checkpoints: expected @{LAST}:1 to @{LAST}:{len(steps)},"
                f" got @{checkpoint}"
            )
        return _Choice(steps, count)
    if checkpoint == CYCLES:
        ends = _cycle_ends(path, steps)
        return _Choice(ends, len(ends), is_strict=True)
    for word in checkpoint.split(","):
        if word not in map(str, steps):
            existing = ", ".join(map(str, sorted(steps)))
            raise UserError(
                f"{path} has no checkpoint {word!r}: expected last, best or a step: {existing};"
                " or several for an ensemble: last:2, or steps separated by commas"
            )
    chosen = tuple(int(word) for word in checkpoint.split(","))
    check_unique(f"{path}@{checkpoint}", "step", chosen)
    return _Choice([*chosen], len(chosen), is_strict=True)


def _cycle_ends(path: Path, steps: list[int]) -> list[int]:
    """Returns the steps at which the cycles of the learning rate have ended.

    Raises:
      UserError: if the run has no cycles, the first one has not ended, or the checkpoint at the
        end of one is missing.
    """
    from resflax.run.checkpoint import latest_valid_metadata

    metadata = latest_valid_metadata(path / "checkpoints") or {}
    ends = [step for step in metadata.get("snapshots", []) if step <= max(steps)]
    if not ends:
        raise UserError(
            f"{path} has no checkpoint at the end of a cycle: expected a run with"
            " config.schedule='cosine_cycles', or @ with last, best or steps"
        )
    if missing := [str(step) for step in ends if step not in steps]:
        existing = ",".join(str(step) for step in ends if step in steps) or LAST
        raise UserError(
            f"{path} has no checkpoint at step {', '.join(missing)}, where a cycle ended: expected"
            f" the checkpoints at the ends of all cycles, or others, such as @{existing}"
        )
    return ends


def _sort_by_accuracy(path: Path, steps: list[int], skip: Skip) -> list[int]:
    """Returns the steps at which the run evaluated, the highest accuracy first, then the first."""
    accuracies = {}
    for step in steps:
        try:
            accuracies[step] = _verify(path, step, only_metadata=True).accuracy
        except CorruptCheckpointError as e:
            skip(step, e)
    evaluated = {step: a for step, a in sorted(accuracies.items()) if a is not None}
    if accuracies and not evaluated:
        raise UserError(f"no checkpoint of {path} was evaluated: use {path}@last")
    return sorted(evaluated, key=lambda step: evaluated[step], reverse=True)


def _verify(path: Path, step: int, *, only_metadata: bool = False) -> RunCheckpoint:
    """Verifies the files of a checkpoint and reads its metadata.

    Raises:
      CorruptCheckpointError: if a file differs from the manifest, or cannot be read.
    """
    from resflax.run.checkpoint import ARRAYS, read_metadata

    folder = path / "checkpoints"
    checksums = verify_manifest(folder / str(step), skip=f"{ARRAYS}/" if only_metadata else "")
    try:
        return RunCheckpoint(step, checksums, read_metadata(folder, step))
    except OSError as e:  # deleted by a run that is still training
        raise CorruptCheckpointError(f"it cannot be read: {e.strerror}") from e
