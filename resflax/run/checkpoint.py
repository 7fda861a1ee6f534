"""Contents and reading of a checkpoint: any pytree through Orbax, with a manifest."""

import contextlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from resflax.errors import UserError
from resflax.run.manifest import (
    CorruptCheckpointError,
    verify_leaves,
    verify_manifest,
)

# Items of an Orbax checkpoint: the arrays, and JSON.
ARRAYS, METADATA = "state", "metadata"


class Checkpoint(NamedTuple):
    """Contents of a checkpoint.

    Attributes:
      step: number of training steps taken.
      tree: dictionary of pytrees of NumPy arrays.
      metadata: dictionary of JSON values.
    """

    step: int
    tree: dict[str, Any]
    metadata: dict[str, Any]


def single_process() -> ocp.options.MultiprocessingOptions:
    """Makes Orbax read and write without the other processes: each has the whole state."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def list_steps(folder: Path) -> list[int]:
    """Returns the steps that have a directory, the latest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def latest_valid_metadata(folder: Path) -> dict[str, Any] | None:
    """Returns the metadata of the latest checkpoint whose metadata are valid; None without one.

    The files of the arrays are not read.
    """
    for step in list_steps(folder):
        with contextlib.suppress(CorruptCheckpointError):
            verify_manifest(folder / str(step), skip=f"{ARRAYS}/")
            return read_metadata(folder, step)
    return None


def read_metadata(folder: Path, step: int) -> dict[str, Any]:
    """Reads the JSON metadata of the checkpoint of a step whose files were verified."""
    return dict(json.loads((folder / str(step) / METADATA / "metadata").read_text()))


def read_subtrees(
    folder: Path, step: int, paths: Sequence[str], checksums: dict[str, str]
) -> dict[str, Any]:
    """Reads parts of the checkpoint of a step whose files were verified, without a template.

    Args:
      folder: directory of the checkpoints.
      step: the step.
      paths: paths of the trees to read, such as "state/params".
      checksums: result of `verify_manifest`.

    Returns:
      The nested dictionaries of NumPy arrays by path; {} for a tree that was not saved.

    Raises:
      CorruptCheckpointError: if an array differs from the saved one, or cannot be read.
    """
    wanted = {
        name: digest
        for name, digest in checksums.items()
        if any(name.startswith(f"{path}/") for path in paths)
    }
    directory = folder.absolute() / str(step) / ARRAYS
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=single_process())
    try:
        saved = traverse_util.flatten_dict(handler.metadata(directory).tree, sep="/")
        arrays = {name: np.zeros(saved[name].shape, saved[name].dtype) for name in wanted}
        template = traverse_util.unflatten_dict(arrays, sep="/")
        args = ocp.args.PyTreeRestore(
            item=template,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template),
            partial_restore=True,
        )
        with ocp.Checkpointer(handler, multiprocessing_options=single_process()) as checkpointer:
            tree = checkpointer.restore(directory, args=args)
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise CorruptCheckpointError(f"its arrays cannot be read: {reason}") from e
    verify_leaves(tree, wanted)
    return {path: _get_subtree(tree, path) for path in paths}


def _get_subtree(tree: dict[str, Any], path: str) -> Any:
    for name in path.split("/"):
        tree = tree.get(name, {})
    return tree


def _check_shapes(expected: Any, restored: Any) -> None:
    """Raises `ValueError` if a leaf has another shape or dtype: Orbax checks only the structure."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, template), leaf in zip(leaves, jax.tree.leaves(restored), strict=True):
        if (leaf.shape, leaf.dtype) != (template.shape, template.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name} is {leaf.dtype}{list(leaf.shape)}, expected"
                f" {template.dtype}{list(template.shape)}"
            )


_flatten = partial(traverse_util.flatten_dict, keep_empty_nodes=True)
_unflatten = traverse_util.unflatten_dict


def _without_unsaved_nodes(arrays: Any, directory: Path) -> Any:
    """Returns a tree without the empty nodes that a checkpoint does not have.

    A state may have an optional part, here empty, that it did not have when it was saved.
    """
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=single_process())
    saved = _flatten(handler.metadata(directory).tree)
    empty = traverse_util.empty_node
    flat = _flatten(arrays)
    return _unflatten({k: leaf for k, leaf in flat.items() if leaf is not empty or k in saved})


def read_checkpoint(
    folder: Path, step: int, template: dict[str, Any], checksums: dict[str, str]
) -> Checkpoint:
    """Reads the checkpoint of a step whose files were verified.

    Entries of the template for which nothing was saved are returned as {}.
    """
    saved = {name.split("/")[0] for name in checksums}
    wanted = {name: tree if name in saved else {} for name, tree in template.items()}
    everything = jax.tree.map(np.asarray, serialization.to_state_dict(wanted))
    handler = ocp.CompositeCheckpointHandler()
    try:
        arrays = _without_unsaved_nodes(everything, folder / str(step) / ARRAYS)
        args = ocp.args.Composite(
            **{ARRAYS: ocp.args.StandardRestore(arrays), METADATA: ocp.args.JsonRestore()}
        )
        with ocp.Checkpointer(handler, multiprocessing_options=single_process()) as checkpointer:
            restored = checkpointer.restore(folder / str(step), args=args)
        _check_shapes(arrays, restored[ARRAYS])
    except (ValueError, KeyError, TypeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"the checkpoint at step {step} belongs to another network or optimizer: {reason}"
        ) from e
    arrays = jax.tree.map(np.asarray, restored[ARRAYS])
    verify_leaves(arrays, checksums)
    arrays = _unflatten({**_flatten(everything), **_flatten(arrays)})
    tree = {name: serialization.from_state_dict(wanted[name], arrays[name]) for name in wanted}
    return Checkpoint(step, tree, restored[METADATA])


def restore_latest(folder: Path, template: dict[str, Any]) -> Checkpoint:
    """Reads the latest valid checkpoint in a folder without changing anything on disk.

    Raises:
      UserError: if there is none, or it has another structure than `template`.
    """
    if not folder.is_dir():
        raise UserError(f"no checkpoint: there is no directory {folder}")
    reasons = []
    for step in list_steps(folder):
        try:
            checksums = verify_manifest(folder / str(step))
            return read_checkpoint(folder.absolute(), step, template, checksums)
        except CorruptCheckpointError as e:
            reasons.append(f"; the one at step {step} is corrupt: {e}")
    raise UserError(f"no checkpoint in {folder}{''.join(reasons)}")
