"""Weights files as names to NumPy arrays. Code stored in a file is never run."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from resflax.errors import Report, UserError, first_names, print_to_stderr
from resflax.files import user_path, write_atomic
from resflax.weights.arrays import Arrays, to_arrays, to_tensor
from resflax.weights.file_kinds import INDEX, INDEX_SUFFIX, SUFFIXES, TORCH, find_kind
from resflax.weights.layouts import is_flax_name
from resflax.weights.torch_files import import_torch, load_torch
from resflax.weights.unwrap import find_state_dict

FOLDER_NAMES = ("model.safetensors", "pytorch_model.bin")
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


def load_file(path: str | Path, *, report: Report = print_to_stderr) -> Arrays:
    """Loads the arrays of a weights file by name, with the dtypes of the file.

    Args:
      path: a safetensors file; a torch file, read by `torch.load` with `weights_only=True` (needs
        PyTorch); the `.index.json` of a sharded model; or a folder that contains one of these under
        its standard name. The content decides which, whatever the suffix is.
      report: called with a message if the file is a training checkpoint, of which only the state
        dict is used (`find_state_dict`).

    Raises:
      UserError: if the file is missing, truncated, not a weights file, or contains non-finite
        values.
    """
    path = find_weights_file(user_path(path))
    kind = _find_kind(path)
    arrays = _load_shards(path, report) if kind == INDEX else _load(path, kind, report)
    bad = [name for name, array in arrays.items() if not _is_finite(array)]
    if bad:
        names = first_names(bad)
        raise UserError(f"{path} contains NaN or infinity in {names}: expected finite values")
    return arrays


def save_file(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Saves arrays as a `.safetensors` or torch file (needs PyTorch), chosen by the suffix.

    The write is atomic: on failure an existing file is unchanged. The header of a `.safetensors`
    file is `TORCH_METADATA`, unless the arrays have resflax's names.

    Args:
      path: the file.
      arrays: arrays or torch tensors by name.

    Raises:
      UserError: if the suffix is unknown or the file cannot be written.
    """
    path = user_path(path)
    try:
        write_atomic(path, _serialize(path, to_arrays(arrays)))
    except UserError as e:
        raise UserError(f"cannot write {path}: {e}") from e
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e
    except (RuntimeError, TypeError, KeyError, safetensors.SafetensorError) as e:
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


def _serialize(path: Path, arrays: Arrays) -> bytes:
    if path.suffix == ".safetensors":
        # safetensors writes the underlying buffer and ignores strides.
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        metadata = None if any(map(is_flax_name, arrays)) else TORCH_METADATA
        return safetensors.numpy.save(contiguous, metadata)
    if path.suffix in SUFFIXES:
        torch = import_torch("writing it")
        buffer = io.BytesIO()
        torch.save({name: to_tensor(array) for name, array in arrays.items()}, buffer)
        return buffer.getvalue()
    raise UserError(f"expected a name ending in {', '.join(SUFFIXES)}")


def _find_kind(path: Path) -> str:
    try:
        return find_kind(path)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


def _load(path: Path, kind: str, report: Report) -> Arrays:
    content = load_torch(path) if kind == TORCH else _load_safetensors(path)
    return _to_arrays(find_state_dict(content, str(path), report), path)


def _to_arrays(arrays: Mapping[str, Any], path: Path) -> Arrays:
    try:
        return to_arrays(arrays)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def _load_shards(index: Path, report: Report) -> Arrays:
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
        file = index.parent / shard
        arrays |= _load(file, _find_kind(file), report)
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


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.kind in "iub":
        return True
    return bool(np.isfinite(array.astype(np.float32) if array.itemsize < 4 else array).all())
