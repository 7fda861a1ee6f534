"""Files of weights: names to NumPy arrays. Nothing here runs code that a file holds."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from resflax.errors import UserError

Arrays = dict[str, np.ndarray]

# Where trainers put the state dict, the better one first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
TORCH = (".pth", ".pt", ".th", ".bin")
NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def load(path: str | Path, *, tell: Callable[[str], None] = _say) -> Arrays:
    """The arrays of a file of weights, by their names, as they are stored.

    Args:
      path: a `.safetensors` file; a `.pth`, `.pt`, `.th` or `.bin` file, for which PyTorch must be
        installed (its safe loader reads it; pickled code is never run); the `.index.json` of a
        model in several files; or a folder that holds one of these under its usual name.
      tell: called with what was taken out of a checkpoint that wraps its state dict.

    Raises:
      UserError: if there is no such file, or it is truncated, no checkpoint, or holds values that
        are not finite.
    """
    path = find(Path(path))
    arrays = _shards(path, tell) if path.name.endswith(INDEX) else _one(path, tell)
    bad = [name for name, array in arrays.items() if not _finite(array)]
    if bad:
        few = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise UserError(f"{path} holds values that are not finite, in {few}: expected numbers")
    return arrays


def save(path: str | Path, arrays: Arrays) -> None:
    """Writes arrays as a `.safetensors` file, or as one of torch's where that is installed.

    Raises:
      UserError: if the name ends otherwise, or the file cannot be written.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            # It writes memory as it lies, whatever the strides.
            arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            safetensors.numpy.save_file(arrays, path)
        elif path.suffix in TORCH:
            torch = _import_torch(f"writing {path}")
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        else:
            kinds = ", ".join((".safetensors", *TORCH))
            raise UserError(f"cannot write {path}: expected a name that ends in {kinds}")
    except (OSError, RuntimeError, TypeError, KeyError, safetensors.SafetensorError) as e:
        raise UserError(f"cannot write {path}: {e}") from e


def _import_torch(what: str) -> Any:
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"{what} needs PyTorch: pip install torch, or give a .safetensors file"
        ) from e
    return torch


def find(path: Path) -> Path:
    """The file of weights that a path means: itself, or the one that a folder holds."""
    if path.is_dir():
        usual = [path / f"{name}{end}" for name in NAMES for end in ("", INDEX)]
        held = [file for file in usual if file.exists()]
        if not held:
            expected = ", ".join(NAMES)
            raise UserError(f"{path} holds no weights: expected {expected} or an {INDEX}")
        return held[0]
    if not path.exists():
        raise UserError(f"there is no file {path}")
    return path


def _one(path: Path, tell: Callable[[str], None]) -> Arrays:
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in TORCH:
        return _torch(path, tell)
    kinds = ", ".join((".safetensors", *TORCH))
    raise UserError(f"{path} is no file of weights: expected {kinds} or an {INDEX}")


def _shards(index: Path, tell: Callable[[str], None]) -> Arrays:
    try:
        where = json.loads(index.read_text())["weight_map"]
        files = sorted({*map(str, where.values())})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{index} is no index of weights: expected a weight_map in JSON") from e
    arrays: Arrays = {}
    for file in files:
        if Path(file).name != file or not (index.parent / file).exists():
            raise UserError(f"{index} names {file}, which is not beside it")
        arrays |= _one(index.parent / file, tell)
    missing = [name for name in where if name not in arrays]
    if missing:
        raise UserError(f"{index} names arrays that its files lack: {', '.join(missing)}")
    return arrays


def _safetensors(path: Path) -> Arrays:
    data = path.read_bytes()
    _check_length(path, data)
    try:
        entries = safetensors.deserialize(data)
        return {
            name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries
        }
    except (safetensors.SafetensorError, ValueError) as e:
        raise UserError(f"{path} is no safetensors file: {e}") from e
    except KeyError as e:
        raise UserError(f"{path} holds arrays of dtype {e}: expected {', '.join(DTYPES)}") from e


def _check_length(path: Path, data: bytes) -> None:
    """Tells a file that was cut short from one that never was of this kind."""
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > 100_000_000 or data[8:9] not in (b"{", b""):
        raise UserError(f"{path} is no safetensors file ({len(data)} bytes): it has no header")
    needed = 8 + header
    if len(data) >= needed:
        try:
            entries = json.loads(data[8:needed])
            ends = [e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"]
            needed += max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
            raise UserError(f"{path} is no safetensors file: its header is damaged") from e
    if len(data) < needed:
        raise UserError(f"{path} is truncated: {len(data)} bytes of at least {needed}")


def _torch(path: Path, tell: Callable[[str], None]) -> Arrays:
    torch = _import_torch(f"reading {path}")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(
            f"{path} is no checkpoint of arrays alone, damaged, or holds pickled code, which is"
            f" never run: {str(e).splitlines()[0][:160]}"
        ) from e
    except Exception as e:  # a file that was cut short fails in as many ways as it has bytes
        raise UserError(
            f"{path} is truncated or no checkpoint ({path.stat().st_size} bytes):"
            f" {(str(e) or type(e).__name__).splitlines()[0][:160]}"
        ) from e
    return _unwrapped(path, held, torch.Tensor, tell)


def _unwrapped(path: Path, held: Any, tensor: type, tell: Callable[[str], None]) -> Arrays:
    if isinstance(held, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(held.get(name), dict)), None)
        if wrapper is not None:
            tell(f"{path}: took {wrapper!r} of {', '.join(map(repr, held))}")
            held = held[wrapper]
    if not isinstance(held, dict) or not held:
        raise UserError(f"{path} holds a {type(held).__name__}: expected names and arrays")
    others = [str(name) for name, value in held.items() if not isinstance(value, tensor)]
    if others:
        raise UserError(f"{path} is no state dict: {', '.join(others[:5])} are no arrays")
    return {name: _numpy(value) for name, value in held.items()}


def _numpy(value: Any) -> np.ndarray:
    value = value.detach().contiguous()
    if str(value.dtype) == "torch.bfloat16":
        import torch

        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def _finite(array: np.ndarray) -> bool:
    if array.dtype.kind in "iub":
        return True
    return bool(np.isfinite(array.astype(np.float32) if array.itemsize < 4 else array).all())
