"""Export formats, as a table that `export` runs."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from resflax.errors import UserError, unknown
from resflax.export import readers
from resflax.export.model_card import CARD
from resflax.export.onnx import DEFAULT_OPSET, check_onnx, ensemble_to_onnx, to_onnx
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
from resflax.export.trained_model import (
    Exportable,
    TrainedEnsemble,
    TrainedModel,
    describe_ensemble,
    ensemble_metadata,
    input_dtype,
)
from resflax.weights.array_preprocess import check_takes_images

# From this size on, Transformers' image processor for ResNets does not crop.
MAX_CROPPED_SIZE = 384


class ExportOptions(NamedTuple):
    """Options of an export; a format that does not have one takes its default only.

    Attributes:
      uint8: take raw uint8 NHWC pixels of the input size and return probabilities.
      fold: fold batch norm into the convolutions.
      opset: ONNX opset; None for the default.
      symbolic: take images of any size, not of that of the preprocessing only.
      license: license of the weights, for the model card.
      train_command: command that trained the model, for the model card.
    """

    uint8: bool = False
    fold: bool = True
    opset: int | None = None
    symbolic: bool = False
    license: str = ""
    train_command: str = ""


def write_onnx(
    model: Exportable, path: Path, *, uint8: bool, fold: bool, opset: int | None
) -> None:
    """Writes an ONNX model."""
    opset = DEFAULT_OPSET if opset is None else opset
    if isinstance(model, TrainedEnsemble):
        members = [(member.config, member.variables) for member in model.members]
        content = ensemble_to_onnx(
            members,
            uint8=uint8,
            fold=fold,
            opset=opset,
            description=describe_ensemble(model),
            metadata=ensemble_metadata(model),
        )
    else:
        content = to_onnx(model.config, model.variables, uint8=uint8, fold=fold, opset=opset)
    path.write_bytes(content)


def one_network(model: Exportable, name: str) -> TrainedModel:
    """Returns a model, for a format that holds one network.

    Raises:
      UserError: if it is an ensemble.
    """
    if isinstance(model, TrainedModel):
        return model
    raise UserError(
        f"--format={name} holds one network, and this is an ensemble of {len(model.members)}"
        f" networks: export one of them, such as {model.members[0].where}, or the mean of their"
        " probabilities with --format=onnx or --format=stablehlo"
    )


def check_images(model: Exportable, name: str) -> None:
    """Raises `UserError` if a model is not of uint8 images, for a format that holds no other."""
    check_takes_images(model.config.spec, model.preprocess, f"--format={name}")


def _check_transformers(model: TrainedModel) -> None:
    check_images(model, "transformers")
    check_transformers(model.spec)


def _check_onnx(model: Exportable) -> None:
    check_onnx()
    check_images(model, "onnx")


Reader = Callable[[Path, Exportable], ExportedModel | None]


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

    write: Callable[[Exportable, Path, ExportOptions], None]
    readers: tuple[Reader, ...]
    files: tuple[str, ...] = ()
    suffix: str = ""
    options: tuple[str, ...] = ()
    check: Callable[[Exportable], object] = lambda model: None


# Formats of `resflax export`.
FORMATS: dict[str, Format] = {
    # A folder for timm.
    "timm": Format(
        lambda model, path, options: write_timm(one_network(model, "timm"), path, options.license),
        (readers.read_folder, readers.read_timm),
        (CONFIG, WEIGHTS, CARD),
        options=("license", "train_command"),
        check=lambda model: check_images(one_network(model, "timm"), "timm"),
    ),
    # A folder for Transformers.
    "transformers": Format(
        lambda model, path, options: write_transformers(one_network(model, "transformers"), path),
        (readers.read_folder, readers.read_transformers),
        (CONFIG, WEIGHTS, PROCESSOR, CARD),
        options=("license", "train_command"),
        check=lambda model: _check_transformers(one_network(model, "transformers")),
    ),
    # One file for ONNX Runtime and others.
    "onnx": Format(
        lambda model, path, options: write_onnx(
            model, path, uint8=options.uint8, fold=options.fold, opset=options.opset
        ),
        (readers.read_onnx,),
        suffix=".onnx",
        options=("uint8", "fold", "opset"),
        check=_check_onnx,
    ),
    # One file for `jax.export`.
    "stablehlo": Format(
        lambda model, path, options: write_stablehlo(
            model, path, uint8=options.uint8, fold=options.fold, symbolic=options.symbolic
        ),
        (readers.read_stablehlo,),
        suffix=".stablehlo",
        options=("uint8", "fold", "symbolic"),
    ),
}


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


def check_options(name: str, options: ExportOptions) -> None:
    """Checks that a format has the options that are not at their default.

    Raises:
      UserError: if it lacks one.
    """
    defaults = ExportOptions()
    for field, value in options._asdict().items():
        if value != getattr(defaults, field) and field not in FORMATS[name].options:
            having = [key for key, other in FORMATS.items() if field in other.options]
            flag = "no-fold" if field == "fold" else field
            raise UserError(
                f"--{flag} does not apply to --format={name}: it is for {', '.join(having)}"
            )


def check_uint8(model: Exportable) -> None:
    """Raises `UserError` if a model does not take uint8 values, for the option of that name."""
    if input_dtype(model) != "uint8":
        raise UserError(
            f"--uint8 is for networks of uint8 values, and this one takes {input_dtype(model)}"
            " arrays: leave it out"
        )


def notes_of(name: str, model: Exportable) -> tuple[str, ...]:
    """Returns what the user must know about the exported model, one line each."""
    preprocess = model.preprocess
    height, width = preprocess.size
    if name == "timm" and find_timm_model(model.config.spec) is None:
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
