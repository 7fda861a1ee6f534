"""The export of a model: written to a temporary place, verified, then moved to its name."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from resflax.errors import UserError
from resflax.export.formats import (
    FORMATS,
    ExportOptions,
    Format,
    Reader,
    check_options,
    check_uint8,
    format_of,
    notes_of,
    one_network,
)
from resflax.export.model_card import CARD, is_model_card, write_card
from resflax.export.readers import ExportedModel
from resflax.export.trained_model import Exportable
from resflax.export.verify import (
    SampleImages,
    Verification,
    expected_outputs,
    on_cpu,
    read_samples,
    verify,
)
from resflax.files import user_path


class ExportReport(NamedTuple):
    """What an export wrote.

    Attributes:
      path: the file or folder.
      format: name of the format.
      size: bytes of all files.
      verifications: one comparison per reader.
      notes: further lines for the user.
    """

    path: Path
    format: str
    size: int
    verifications: tuple[Verification, ...]
    notes: tuple[str, ...]


def export(
    model: Exportable,
    out: str | Path,
    *,
    format: str | None = None,
    options: ExportOptions | None = None,
    images: Sequence[str] = (),
) -> ExportReport:
    """Exports a model: writes it, loads it again, compares its outputs, then moves it to `out`.

    On any failure nothing is written, and what was in `out` is unchanged. A folder may be
    replaced if it is an earlier export.

    Args:
      model: the model; see `load_trained_model`.
      out: file or folder.
      format: a name in `FORMATS`; by default that of the suffix.
      options: see `ExportOptions`.
      images: image files, or .npy files of a network of arrays, to compare the outputs on; by
        default noise.

    Raises:
      UserError: if the format cannot have the model or an option, a package is missing, `out`
        exists and is something else, the outputs differ, or the disk is full.
    """
    out, options = user_path(out), options or ExportOptions()
    name = format_of(out, format)
    row = FORMATS[name]
    check_options(name, options)
    row.check(model)
    if options.uint8:
        check_uint8(model)
    check_target(out, row)
    samples = read_samples(model, images, symbolic=options.symbolic)
    with on_cpu():
        expected = [expected_outputs(model, s.pixels, uint8=options.uint8) for s in samples]
    with _temporary_folder(out) as temporary:
        target = temporary if row.files else temporary / out.name
        row.write(model, target, options)
        verifications = _load_and_verify(row, target, model, samples, expected, uint8=options.uint8)
        if row.files:
            write_card(
                one_network(model, name),
                temporary,
                name=out.name,
                library=name,
                license_name=options.license,
                train_command=options.train_command,
                verifications=verifications,
            )
        size = sum(path.stat().st_size for path in temporary.iterdir())
        _move(temporary, out, row)
    return ExportReport(out, name, size, verifications, notes_of(name, model))


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """Makes a folder next to `out`, and its parents; on failure, removes all that it made.

    Raises:
      UserError: if an `OSError` is raised in the context.
    """
    temporary = out.absolute().parent / f".{out.name}.{os.getpid()}.part"
    new_parents = [parent for parent in temporary.parents if not os.path.exists(parent)]
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except OSError as e:
        raise UserError(f"cannot write {out}: {e.strerror or e}") from e
    except UserError as e:
        raise UserError(str(e).replace(str(temporary), str(out))) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # on success `out` is in it
                parent.rmdir()


def _load_and_verify(
    row: Format,
    path: Path,
    model: Exportable,
    samples: Sequence[SampleImages],
    expected: Sequence[Float[np.ndarray, "n classes"]],
    *,
    uint8: bool,
) -> tuple[Verification, ...]:
    """Loads what was written by each reader of the format, and compares it with the model."""
    loaded = [_load(reader, path, model) for reader in row.readers]
    with on_cpu():
        return tuple(
            verify(exported, model, images, outputs, uint8=uint8)
            for exported in loaded
            if exported is not None
            for images, outputs in zip(samples, expected, strict=True)
        )


def _load(reader: Reader, path: Path, model: Exportable) -> ExportedModel | None:
    try:
        return reader(path, model)
    except UserError:
        raise
    except Exception as e:  # another library, which may raise anything
        reason = next(iter(str(e).splitlines()), type(e).__name__)
        raise UserError(
            f"{reader.__name__.removeprefix('read_')} cannot load the exported model: {reason};"
            " nothing was written"
        ) from e


def check_target(out: Path, row: Format) -> None:
    """Raises `UserError` if `out` exists and is not an earlier export of this kind."""
    if not row.files:
        if out.is_dir():
            raise UserError(f"OUT is {out}, which is a folder: expected a file name")
        if out.exists() and out.suffix != row.suffix:
            raise UserError(
                f"OUT is {out}, which exists: expected a new file, or one ending in {row.suffix}"
            )
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT is {out}, which is a file: expected a folder")
    existing = sorted(path.name for path in out.iterdir()) if out.exists() else []
    others = [name for name in existing if name not in row.files]
    if existing and not others and not is_model_card(out / CARD):
        others = existing
    if others:
        raise UserError(
            f"OUT is {out}, a folder with other files ({', '.join(others[:3])}): expected a new"
            " folder, an empty one, or an earlier export"
        )


def _move(temporary: Path, out: Path, row: Format) -> None:
    """Moves what was written to `out`; a folder that is there is replaced."""
    if not row.files:
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == out.name):
            path.replace(out.absolute().parent / path.name)
        return
    previous = temporary.with_suffix(".old")
    if out.exists():
        out.rename(previous)
    try:
        temporary.rename(out)
    except BaseException:  # Ctrl-C too
        if previous.exists():
            previous.rename(out)
        raise
    shutil.rmtree(previous, ignore_errors=True)
