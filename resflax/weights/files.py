"""Weights files as names to NumPy arrays. Code stored in a file is never run."""

import io
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
from resflax.files import user_path, write_atomic

Arrays = dict[str, np.ndarray]

# Keys under which training scripts store the state dict, averaged weights first.
STATE_DICT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
FOLDER_NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
# Transformers refuses a file whose header does not say that its arrays are those of PyTorch.
TORCH_METADATA = {"format": "pt"}
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


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def load_file(path: str | Path, *, report: Callable[[str], None] = _print_to_stderr) -> Arrays:
    """Loads the arrays of a weights file by name, with the dtypes of the file.

    Args:
      path: a `.safetensors` file; a `.pth`, `.pt`, `.th` or `.bin` file, read by `torch.load` with
        `weights_only=True` (needs PyTorch); the `.index.json` of a sharded model; or a folder that
        contains one of these under its standard name.
      report: called with a message if the file is a training checkpoint, of which only the state
        dict is used.

    Raises:
      UserError: if the file is missing, truncated, not a weights file, or contains non-finite
        values.
    """
    path = find_weights_file(user_path(path))
    arrays = _load_shards(path, report) if path.name.endswith(INDEX_SUFFIX) else _load(path, report)
    bad = [name for name, array in arrays.items() if not _is_finite(array)]
    if bad:
        names = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise UserError(f"{path} contains NaN or infinity in {names}: expected finite values")
    return arrays


def save_file(path: str | Path, arrays: Arrays, *, metadata: dict[str, str] | None = None) -> None:
    """Saves arrays as a `.safetensors` or torch file (needs PyTorch), chosen by the suffix.

    The write is atomic: on failure an existing file is unchanged.

    Args:
      path: the file.
      arrays: arrays by name.
      metadata: entries of the header of a `.safetensors` file; `TORCH_METADATA` for state dicts.

    Raises:
      UserError: if the suffix is unknown or the file cannot be written.
    """
    path = user_path(path)
    try:
        write_atomic(path, _serialize(path, arrays, metadata))
    except (OSError, RuntimeError, TypeError, KeyError, safetensors.SafetensorError) as e:
        raise UserError(f"cannot write {path}: {e}") from e


def find_weights_file(path: Path) -> Path:
    """Returns `path` if it is a file, or the weights file in the folder `path`.

    Raises:
      UserError: if there is none.
    """
    if path.is_dir():
        candidates = [path / f"{name}{end}" for name in FOLDER_NAMES for end in ("", INDEX_SUFFIX)]
        existing = [file for file in candidates if file.exists()]
        if not existing:
            names = ", ".join(FOLDER_NAMES)
            raise UserError(f"no weights in {path}: expected {names} or their {INDEX_SUFFIX}")
        return existing[0]
    if not path.exists():
        raise UserError(f"file not found: {path}")
    return path


def _import_torch(action: str) -> Any:
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"{action} needs PyTorch: pip install torch, or use a .safetensors file"
        ) from e
    return torch


def _serialize(path: Path, arrays: Arrays, metadata: dict[str, str] | None) -> bytes:
    if path.suffix == ".safetensors":
        # safetensors writes the underlying buffer and ignores strides.
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        return safetensors.numpy.save(contiguous, metadata)
    if path.suffix in TORCH_SUFFIXES:
        torch = _import_torch(f"writing {path}")
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, buffer)
        return buffer.getvalue()
    raise UserError(f"cannot write {path}: expected a name ending in {', '.join(SUFFIXES)}")


def _load(path: Path, report: Callable[[str], None]) -> Arrays:
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _load_torch(path, report)
    raise UserError(
        f"{path} is not a weights file: expected {', '.join(SUFFIXES)} or {INDEX_SUFFIX}"
    )


def _load_shards(index: Path, report: Callable[[str], None]) -> Arrays:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        shards = sorted({*map(str, weight_map.values())})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{index} is not a weights index: expected JSON with a weight_map") from e
    arrays: Arrays = {}
    for shard in shards:
        # A shard must be in the folder of the index: no paths to elsewhere.
        if Path(shard).name != shard or not (index.parent / shard).exists():
            raise UserError(f"{index} lists {shard}, which is not in the same folder")
        arrays |= _load(index.parent / shard, report)
    missing = [name for name in weight_map if name not in arrays]
    if missing:
        raise UserError(f"{index} lists arrays that its shards lack: {', '.join(missing)}")
    return arrays


def _load_safetensors(path: Path) -> Arrays:
    data = path.read_bytes()
    _check_length(path, data)
    try:
        entries = safetensors.deserialize(data)
        return {
            name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries
        }
    except (safetensors.SafetensorError, ValueError) as e:
        raise UserError(f"{path} is not a safetensors file: {e}") from e
    except KeyError as e:
        raise UserError(f"{path} contains dtype {e}: expected one of {', '.join(DTYPES)}") from e


def _check_length(path: Path, data: bytes) -> None:
    """Distinguishes a truncated safetensors file from a file of another format."""
    header_size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_size > 100_000_000 or data[8:9] not in (b"{", b""):
        raise UserError(f"{path} is not a safetensors file ({len(data)} bytes): it has no header")
    expected_size = 8 + header_size
    if len(data) >= expected_size:
        try:
            entries = json.loads(data[8:expected_size])
            ends = [e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"]
            expected_size += max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
            raise UserError(f"{path} is not a safetensors file: its header is corrupt") from e
    if len(data) < expected_size:
        raise UserError(
            f"{path} is truncated: {len(data)} bytes, expected at least {expected_size}"
        )


def _load_torch(path: Path, report: Callable[[str], None]) -> Arrays:
    torch = _import_torch(f"reading {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(
            f"{path} is not a checkpoint of plain arrays: it is corrupt or contains pickled code,"
            f" which is never run: {str(e).splitlines()[0][:160]}"
        ) from e
    except Exception as e:  # truncated files raise many exception types
        raise UserError(
            f"{path} is truncated or not a checkpoint ({path.stat().st_size} bytes):"
            f" {(str(e) or type(e).__name__).splitlines()[0][:160]}"
        ) from e
    return _extract_state_dict(path, content, torch.Tensor, report)


def _extract_state_dict(
    path: Path, content: Any, tensor_type: type, report: Callable[[str], None]
) -> Arrays:
    if isinstance(content, dict):
        key = next((k for k in STATE_DICT_KEYS if isinstance(content.get(k), dict)), None)
        if key is not None:
            report(f"{path}: using {key!r} of the checkpoint's {', '.join(map(repr, content))}")
            content = content[key]
    if not isinstance(content, dict) or not content:
        kind = "an empty dict" if content == {} else f"a {type(content).__name__}"
        raise UserError(f"{path} contains {kind}: expected a dict of arrays")
    others = [str(name) for name, value in content.items() if not isinstance(value, tensor_type)]
    if others:
        raise UserError(
            f"{path} is not a state dict: expected arrays only, but these entries are not:"
            f" {', '.join(others[:5])}"
        )
    return {name: _to_numpy(value) for name, value in content.items()}


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":  # which `Tensor.numpy` does not support
        import torch

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.kind in "iub":
        return True
    return bool(np.isfinite(array.astype(np.float32) if array.itemsize < 4 else array).all())
