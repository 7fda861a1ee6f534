"""Names of runs: a workdir, its checkpoints, and the members of an ensemble."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from resflax.errors import UserError
from resflax.files import expand_path

LAST, BEST, CYCLES = "last", "best", "cycles"


class RunName(NamedTuple):
    """Parts of `DIR[@CHECKPOINT][#MEMBERS]`, the name of networks that a run trained.

    Attributes:
      folder: the workdir.
      checkpoint: "last", "best", a step ("200"), several steps ("100,200"), the last few
        checkpoints ("last:3"), or the ends of the cycles of the learning rate ("cycles").
      members: indices of members of an ensemble, from 0; None for all.
    """

    folder: Path
    checkpoint: str = LAST
    members: tuple[int, ...] | None = None

    @property
    def names_several_checkpoints(self) -> bool:
        """Whether the checkpoint is a list of steps, the last few checkpoints or cycles."""
        return "," in self.checkpoint or ":" in self.checkpoint or self.checkpoint == CYCLES


def is_workdir(path: Path) -> bool:
    """Returns whether a path is the directory of a run, also of one without a checkpoint yet."""
    if (path / "checkpoints").is_dir():
        return True
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"dataset", "model", "epochs"} <= config.keys()


def split_checkpoint(where: str) -> RunName | None:
    """Splits `DIR[@CHECKPOINT][#MEMBERS]` into its parts.

    An existing path is never split. Otherwise a "#" that is followed by "@" or "/" belongs to the
    path, as does an "@" that is followed by another one.

    Returns:
      The parts; None if `where` does not name a run.

    Raises:
      UserError: if a checkpoint or members are given, but no workdir, or the members are invalid.
    """
    where = expand_path(where)
    if Path(where).exists():
        return RunName(Path(where)) if is_workdir(Path(where)) else None
    base, mark, members = where.rpartition("#")
    if not mark or set("@/") & set(members):
        base, mark, members = where, "", ""
    folder, at, checkpoint = base.rpartition("@")
    if mark and (Path(base).exists() or (not at and re.fullmatch(r"[\d,]+", members))):
        folder, at, checkpoint = base, "", LAST
    elif not at:
        return None
    elif not mark and (swapped := _swapped(folder, checkpoint)):
        raise UserError(f"{where}: members come last: expected {swapped}")
    _check_workdir(where, Path(folder), at or mark, checkpoint)
    return RunName(Path(folder), checkpoint, _parse_members(base, members) if mark else None)


def _swapped(folder: str, checkpoint: str) -> str:
    """Returns the name that `DIR#MEMBERS@CHECKPOINT` should be; "" if it is something else."""
    base, _, members = folder.rpartition("#")
    if Path(folder).exists() or not is_workdir(Path(base)) or not re.fullmatch(r"[\d,]+", members):
        return ""
    return f"{base}@{checkpoint}#{members}"


def _check_workdir(where: str, folder: Path, mark: str, checkpoint: str) -> None:
    """Raises `UserError` if a folder is not the workdir of a run, which `mark`, @ or #, needs."""
    if folder.exists() and (mark == "#" or folder.is_dir()):
        if not is_workdir(folder):
            raise UserError(f"{where}: {folder} is not the workdir of a run, which {mark} needs")
        return
    hint = (
        f"; for a revision of a Hub repository, use --revision={checkpoint}"
        if mark == "@"
        else ", and # chooses members of an ensemble's workdir"
    )
    raise UserError(f"{where}: folder not found: {folder}{hint}")


def _parse_members(base: str, text: str) -> tuple[int, ...]:
    """Returns the indices in "0,2,3".

    Raises:
      UserError: if one is not an index, or occurs twice.
    """
    words = text.split(",")
    if not all(re.fullmatch(r"[0-9]+", word) for word in words):
        raise UserError(
            f"{base}#{text}: {text!r} does not name members: expected an index, {base}#0, or"
            f" several, {base}#0,2"
        )
    members = tuple(map(int, words))
    check_unique(f"{base}#{text}", "member", members)
    return members


def check_unique(where: str, kind: str, values: tuple[int, ...]) -> None:
    """Raises `UserError` if a value, such as the index of a "member", occurs twice."""
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{where}: {kind} {value} is given twice: expected it once")
