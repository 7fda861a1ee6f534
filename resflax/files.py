"""Paths that users give, atomic writes, text of file names, quarantine, disk errors as one line."""

import argparse
import contextlib
import csv
import errno
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from resflax.errors import UserError

# HOME of processes that have none: it does not exist.
UNKNOWN_HOME = "/nonexistent"
# Errors of the disk or its permissions. Libraries quote their text inside longer messages.
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EIO)
# A scheme of at least two letters, since Windows has drives; `Path` leaves one slash of two.
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
_VARIABLE = re.compile(r"\$\{?[a-zA-Z_]")


def expand_path(given: str | Path, option: str = "") -> str:
    """Returns the text of a path that a user gave, with a leading `~` or `~USER` expanded.

    The shell expands them in words such as `~/x`, but not in `--workdir=~/x`.

    Args:
      given: the path.
      option: what the path is for, such as "--workdir", for the error message.

    Raises:
      UserError: if it is a URL, or begins with an unknown user or a variable such as `$HOME`.

    >>> expand_path("runs/a")
    'runs/a'
    >>> expand_path("gs://bucket/a")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    resflax.errors.UserError: 'gs://bucket/a' is a URL: expected a path on this machine; ...
    """
    text = os.fspath(given)
    name = f"{option} {text!r}".strip()
    if _URL.match(text):
        raise UserError(
            f"{name} is a URL: expected a path on this machine; copy or synchronize the files (such"
            " as `gcloud storage rsync`, `aws s3 sync`), or mount the bucket"
        )
    first = text.split(os.sep)[0]
    is_home_unknown = first == "~" and os.environ.get("HOME") == UNKNOWN_HOME
    expanded = text if is_home_unknown else os.path.expanduser(text)
    if expanded.startswith("~") and not Path(first).exists():
        reason = "HOME is not set" if first == "~" else f"there is no user {first[1:]!r}"
        raise UserError(
            f"{name} cannot be expanded, since {reason}: give the full path; ./{text} is a local"
            " file of this name"
        )
    if _VARIABLE.match(text) and not Path(first).exists():
        raise UserError(
            f"{name} begins with a variable, which is not expanded here: leave out the quotes, or"
            f" give the full path; ./{text} is a local file of this name"
        )
    return expanded


def user_path(given: str | Path, option: str = "") -> Path:
    """Returns a path that a user gave; see `expand_path`."""
    return Path(expand_path(given, option))


def path_type(given: str) -> Path:
    """Returns `user_path`, as the `type` of an argument of `argparse`, which names the option."""
    return Path(where_type(given))


def where_type(given: str) -> str:
    """Returns `expand_path`, as `path_type` does: for names that can also be other things."""
    try:
        return expand_path(given)
    except UserError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` when the block ends without an exception.

    Readers see the old content or the new, never a part. The data is flushed to disk before the
    rename, so this also holds after a power failure.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file atomically: see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def encode_text(text: str) -> bytes:
    r"""Returns UTF-8, in which bytes of a file name that are not UTF-8 become `\xHH`.

    >>> print(encode_text(os.fsdecode(b"caf\xe9.png")).decode())
    caf\xe9.png
    """
    return replace_undecodable(text).encode()


def format_csv(rows: Iterable[Iterable[object]]) -> str:
    r"""Returns the rows of a CSV file.

    >>> format_csv([("a.png", "cat, tabby", 0.5)])
    'a.png,"cat, tabby",0.5\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def replace_undecodable(text: str) -> str:
    r"""Returns valid Unicode: bytes of a file name that are not UTF-8 become `\xHH`.

    >>> print(replace_undecodable(os.fsdecode(b"caf\xe9.png")))
    caf\xe9.png
    """
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def quarantine(path: Path, folder: Path) -> Path:
    """Moves a corrupt file or directory into `folder`, under an unused name, which it returns."""
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 1
    while target.exists():
        target, number = folder / f"{path.name}-{number}", number + 1
    return path.rename(target)


@contextlib.contextmanager
def disk_errors_as_user_error(
    what: str, advice: Callable[[], str], *, errors: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    """Turns errors while reading or writing files into a `UserError` of one line.

    Args:
      what: the failed operation, such as "workdir runs/a cannot be written".
      advice: returns what to do; called when the error happens.
      errors: types to convert. Orbax and TensorStore raise `ValueError` and `RuntimeError` too.
    """
    try:
        yield
    except UserError:
        raise
    except errors as e:
        text = str(e)
        known = [os.strerror(code) for code in DISK_ERRNOS if os.strerror(code) in text]
        reason = known[0] if known else getattr(e, "strerror", None) or " ".join(text.split())[:200]
        raise UserError(f"{what}: {reason}: {advice()}") from e
