"""Export formats, as a table that `export` runs: write, verify, then move into place."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from resflax.errors import UserError, unknown
from resflax.export import readers
from resflax.export.model_card import CARD, write_card
from resflax.export.onnx import DEFAULT_OPSET, check_onnx, to_onnx
from resflax.export.readers import ExportedModel
from resflax.export.stablehlo import write_stablehlo
from resflax.export.timm_names import find_timm_model
from resflax.export.torch_folders import (
    CONFIG,
    PROCESSOR,
    WEIGHTS,
    check_transformers,
    write_timm,
    write_transformers,
)
from resflax.export.trained_model import TrainedModel
from resflax.export.verify import (
    Verification,
    expected_outputs,
    on_cpu,
    read_sample_images,
    verify,
)

# From this size on, Transformers' image processor for ResNets does not crop.
MAX_CROPPED_SIZE = 384


class ExportOptions(NamedTuple):
    """Options of an export; a format that does not have one takes its default only.

    Attributes:
      uint8: take raw uint8 NHWC pixels of the input size and return probabilities.
      fold: fold batch norm into the convolutions.
      opset: ONNX opset; None for the default.
      license: license of the weights, for the model card.
      train_command: command that trained the model, for the model card.
    """

    uint8: bool = False
    fold: bool = True
    opset: int | None = None
    license: str = ""
    train_command: str = ""


def write_onnx(
    model: TrainedModel, path: Path, *, uint8: bool, fold: bool, opset: int | None
) -> None:
    """Writes an ONNX model."""
    opset = DEFAULT_OPSET if opset is None else opset
    path.write_bytes(to_onnx(model.config, model.variables, uint8=uint8, fold=fold, opset=opset))


Reader = Callable[[Path, TrainedModel], ExportedModel | None]


class Format(NamedTuple):
    """Row of `FORMATS`.

    Attributes:
      write: writes the model to a path; a folder exists already.
      readers: load what was written, for verification; None where a package is missing.
      files: names of the files of a folder; () if the format is one file.
      suffix: suffix of OUT that selects the format; "" for a folder.
      options: names of the `ExportOptions` that the format has.
      check: raises `UserError` if the format cannot have the model, or needs a package.
    """

    write: Callable[[TrainedModel, Path, ExportOptions], None]
    readers: tuple[Reader, ...]
    files: tuple[str, ...] = ()
    suffix: str = ""
    options: tuple[str, ...] = ()
    check: Callable[[TrainedModel], None] = lambda model: None


FORMATS: dict[str, Format] = {
    "timm": Format(
        lambda model, path, options: write_timm(model, path, options.license),
        (readers.read_folder, readers.read_timm),
        (CONFIG, WEIGHTS, CARD),
        options=("license", "train_command"),
    ),
    "transformers": Format(
        lambda model, path, options: write_transformers(model, path),
        (readers.read_folder, readers.read_transformers),
        (CONFIG, WEIGHTS, PROCESSOR, CARD),
        options=("license", "train_command"),
        check=lambda model: check_transformers(model.spec),
    ),
    "onnx": Format(
        lambda model, path, options: write_onnx(
            model, path, uint8=options.uint8, fold=options.fold, opset=options.opset
        ),
        (readers.read_onnx,),
        suffix=".onnx",
        options=("uint8", "fold", "opset"),
        check=lambda model: check_onnx(),
    ),
    "stablehlo": Format(
        lambda model, path, options: write_stablehlo(
            model, path, uint8=options.uint8, fold=options.fold
        ),
        (readers.read_stablehlo,),
        suffix=".stablehlo",
        options=("uint8", "fold"),
    ),
}


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


def format_of(out: Path, name: str | None = None) -> str:
    """Returns the name of the format: `name`, or that of the suffix of `out`.

    Raises:
      UserError: if the name is unknown, or the suffix is that of another format or of none.

    >>> format_of(Path("net.stablehlo")), format_of(Path("folder"))
    ('stablehlo', 'timm')
    """
    suffixes = {row.suffix: key for key, row in FORMATS.items() if row.suffix}
    if name is None:
        if out.suffix and out.suffix not in suffixes and not out.is_dir():
            raise UserError(
                f"OUT is {out}: expected a name ending in {' or '.join(suffixes)}, or a folder;"
                " or pass --format"
            )
        return suffixes.get(out.suffix, "timm")
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return name


def export(
    model: TrainedModel,
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
      images: image files to compare the outputs on; by default noise.

    Raises:
      UserError: if the format cannot have the model or an option, a package is missing, `out`
        exists and is something else, the outputs differ, or the disk is full.
    """
    out, options = Path(out), options or ExportOptions()
    name = format_of(out, format)
    row = FORMATS[name]
    _check_options(name, row, options)
    row.check(model)
    _check_target(out, row)
    sample_images = read_sample_images(model, images)
    with on_cpu():
        expected = expected_outputs(model, sample_images.pixels, uint8=options.uint8)
    temporary = out.absolute().parent / f".{out.name}.{os.getpid()}.part"
    try:
        temporary.mkdir(parents=True)
        target = temporary if row.files else temporary / out.name
        row.write(model, target, options)
        loaded = [_load(reader, target, model) for reader in row.readers]
        with on_cpu():
            verifications = tuple(
                verify(exported, model, sample_images, expected, uint8=options.uint8)
                for exported in loaded
                if exported is not None
            )
        notes = _notes(name, model)
        if row.files:
            write_card(
                model,
                temporary,
                name=out.name,
                library=name,
                license_name=options.license,
                train_command=options.train_command,
                verifications=verifications,
            )
        size = sum(path.stat().st_size for path in temporary.iterdir())
        _move(temporary, out, row)
    except OSError as e:
        raise UserError(f"cannot write {out}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportReport(out, name, size, verifications, notes)


def _load(reader: Reader, path: Path, model: TrainedModel) -> ExportedModel | None:
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


def _check_options(name: str, row: Format, options: ExportOptions) -> None:
    defaults = ExportOptions()
    for field, value in options._asdict().items():
        if value != getattr(defaults, field) and field not in row.options:
            having = [key for key, other in FORMATS.items() if field in other.options]
            flag = "no-fold" if field == "fold" else field
            raise UserError(
                f"--{flag} does not apply to --format={name}: it is for {', '.join(having)}"
            )


def _check_target(out: Path, row: Format) -> None:
    """Raises `UserError` if `out` exists and is not an earlier export of this kind."""
    if not row.files:
        if out.is_dir():
            raise UserError(f"OUT is {out}, which is a folder: expected a file name")
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT is {out}, which is a file: expected a folder")
    others = (
        sorted(p.name for p in out.iterdir() if p.name not in row.files) if out.exists() else []
    )
    if others:
        raise UserError(
            f"OUT is {out}, a folder with other files ({', '.join(others[:3])}): expected a new"
            " folder, an empty one, or an earlier export"
        )


def _notes(name: str, model: TrainedModel) -> tuple[str, ...]:
    """Returns what the user must know about the exported model, one line each."""
    preprocess = model.preprocess
    height, width = preprocess.size
    if name == "timm" and find_timm_model(model.spec) is None:
        return (
            "timm has no such architecture: load the folder with resflax.load_pretrained, or"
            " export it to ONNX",
        )
    if name == "transformers" and (
        preprocess.crop_mode != "center" or height != width or height >= MAX_CROPPED_SIZE
    ):
        return (
            "Transformers' image processor resizes and crops in another way:"
            " resflax.load_pretrained has the exact preprocessing",
        )
    return ()


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
    except OSError:
        if previous.exists():
            previous.rename(out)
        raise
    shutil.rmtree(previous, ignore_errors=True)
