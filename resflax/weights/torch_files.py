"""Torch files, read by torch's safe loader: code that is pickled in a file is never run."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resflax.errors import UserError

# Classes whose objects training scripts save beside the weights. The safe loader gets a stand-in
# for each of them, which holds nothing: neither they nor their packages are needed.
IGNORED_CLASSES = {
    "argparse": ("Namespace",),
    "builtins": ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range",
                 "slice", "str", "tuple", "type"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy.random._mt19937": ("MT19937",),
    "numpy.random._pcg64": ("PCG64", "PCG64DXSM"),
    "numpy.random._philox": ("Philox",),
    "numpy.random._pickle": ("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"),
    "numpy.random._sfc64": ("SFC64",),
    "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": ("AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode",
                        "IntegerNode", "PathNode", "StringNode"),
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
    "uuid": ("UUID",),
    **{
        module: ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
        for module in ("pathlib", "pathlib._local")
    },
}  # fmt: skip
DICT_CLASSES = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)
LIST_CLASSES = ("collections.deque",)
NUMPY_MODULES = ("numpy.core", "numpy._core")  # before and since NumPy 2
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class _Ignored:
    """Stands for an object beside the weights, whatever it was made from."""

    def __new__(cls, *args: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict:
    """Makes a plain dict in place of another mapping."""

    def __new__(cls, *args: Any) -> "OrderedDict[Any, Any]":  # type: ignore[misc]
        return OrderedDict()


class _List(list[Any]):
    """Stands for another sequence, whose items follow."""

    def __init__(self, *args: Any) -> None:
        super().__init__()


def safe_globals() -> list[tuple[Callable[..., Any], str]]:
    """Returns what torch's loader may call besides its own, with the names in the files.

    NumPy's arrays, dtypes and scalars are made by NumPy: weights can be such arrays.
    """
    from numpy._core import multiarray

    rows: list[tuple[Callable[..., Any], str]] = [
        (_Ignored, f"{module}.{name}")
        for module, names in IGNORED_CLASSES.items()
        for name in names
    ]
    rows += [(_Dict, name) for name in DICT_CLASSES]
    rows += [(_List, name) for name in LIST_CLASSES]
    rows += [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["All"]}
    rows += [(dtype, f"{dtype.__module__}.{dtype.__qualname__}") for dtype in dtypes]
    for module in NUMPY_MODULES:
        rows += [
            (getattr(multiarray, name), f"{module}.multiarray.{name}")
            for name in ("_reconstruct", "scalar")
        ]
    return rows


def load_torch(path: Path) -> Any:
    """Returns the content of a torch file on the CPU.

    Raises:
      UserError: if PyTorch is not installed, or the file is truncated, not a torch file or contains
        objects of a class that is not known to be plain data.
    """
    torch = import_torch(f"reading {path}")
    try:
        with (
            torch.serialization.safe_globals(safe_globals()),
            warnings.catch_warnings(action="ignore"),
            open(path, "rb") as file,  # of a path, torch would look at the suffix
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(_describe(path, str(e))) from e
    except Exception as e:  # truncated files raise many exception types
        raise UserError(
            f"{path} is truncated or not a checkpoint ({path.stat().st_size} bytes):"
            f" {_first_line(str(e) or type(e).__name__)}"
        ) from e


def import_torch(action: str) -> Any:
    """Imports torch.

    Raises:
      UserError: if it is not installed; the message begins with `action`.
    """
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f'{action} needs PyTorch: pip install "resflax[torch]", or use a .safetensors file'
        ) from e
    return torch


def _describe(path: Path, message: str) -> str:
    """Returns the error for a file that torch's safe loader refuses."""
    message = ESCAPES.sub("", message)
    if (match := re.search(r"GLOBAL (\S+)", message)) and not _ends_in(path, match[1]):
        return (
            f"{path} contains {match[1]}, pickled code, which is never run: expected arrays and"
            " plain values: in a script of your own that trusts the file, save the weights alone,"
            " torch.save(net.state_dict(), 'weights.pth'), or save them as safetensors"
        )
    if match := re.search(r"Unsupported operand \d+", message):
        return (
            f"{path} is not a checkpoint of plain arrays that torch's safe loader reads"
            f" ({match[0].lower()}): it is corrupt, not written by torch.save, or has another"
            " pickle protocol than torch's default: save it again with torch.save(weights,"
            " 'weights.pth')"
        )
    reason = message.rpartition("WeightsUnpickler error:")[2]
    return (
        f"{path} is not a checkpoint of plain arrays: it is corrupt or contains pickled code, which"
        f" is never run: {_first_line(reason)}"
    )


def _ends_in(path: Path, name: str) -> bool:
    """Returns whether a file is truncated inside a name, of which the loader drops a character."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - len(name) - 1))
        return file.read()[:-1].endswith(name.rpartition(".")[2].encode())


def _first_line(text: str) -> str:
    return (ESCAPES.sub("", text).strip().splitlines() or [""])[0][:160]
