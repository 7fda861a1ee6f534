"""Inputs of `resflax predict`: image files, or arrays in .npy and .npz files."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from resflax.data.array_files import is_array, read_array
from resflax.data.decode import BadExampleError
from resflax.data.image_files import (
    ARRAYS,
    check_images,
    find_files,
    find_images,
    names_arrays,
    read_batches,
)
from resflax.errors import UserError
from resflax.weights import Weights
from resflax.weights.array_preprocess import ArrayPreprocess, check_takes_images

Batches = Iterator[tuple[list[int], Num[np.ndarray, "n *space channels"]]]
OnBad = Callable[[BadExampleError], None]


class Inputs(NamedTuple):
    """Examples to predict.

    Attributes:
      names: name of each example.
      noun: what they are.
      batches: `(batch_size, on_bad) -> indices and examples of each batch`, where `on_bad` is
        called with the error of each unreadable image, which is left out unless it raises.
    """

    names: list[str]
    noun: str
    batches: Callable[[int, OnBad], Batches]


def find_inputs(args: argparse.Namespace) -> list[str]:
    """Returns the files that the command line names, all images or all arrays.

    Raises:
      UserError: if there are none, both kinds, an image that is not readable, or an option that
        does not apply to arrays.
    """
    if not any(map(names_arrays, args.paths)):
        paths = find_images(args.paths)
        if args.on_bad_example == "raise":
            try:
                check_images(paths, num_threads=args.num_workers)
            except BadExampleError as e:
                raise unreadable(e) from e
        return paths
    paths = find_files(args.paths, ARRAYS)
    others = [path for path in paths if not is_array(path)]
    if others:
        raise UserError(f"{others[0]} is not an array, as other files are: expected one kind")
    for option, is_given in (
        ("--sheet", args.sheet),
        ("--on-bad-example", args.on_bad_example != "raise"),
    ):
        if is_given:
            raise UserError(f"{option} is for images, and {paths[0]} is an array: leave it out")
    return paths


def open_inputs(paths: Sequence[str], weights: Weights, *, num_threads: int) -> Inputs:
    """Returns the examples in files, as a network takes them; arrays are read here.

    Raises:
      UserError: if the network takes arrays of another shape or dtype, or images and the files are
        arrays, or the reverse.
    """
    preprocess = weights.config.preprocess
    if not isinstance(preprocess, ArrayPreprocess):
        if is_array(paths[0]):
            raise UserError(f"{paths[0]} is an array, but {weights.where} takes images")
        check_takes_images(weights.config.spec, preprocess, "resflax predict")

        def batches(size: int, on_bad: OnBad) -> Batches:
            channels = preprocess.channels
            return read_batches(
                paths, preprocess, channels, size, num_threads=num_threads, on_bad=on_bad
            )

        return Inputs(list(paths), "image", batches)
    if not is_array(paths[0]):
        shape = (*preprocess.space, preprocess.channels)
        raise UserError(
            f"{paths[0]} is an image, but {weights.where} takes {preprocess.dtype} arrays of shape"
            f" {shape}: expected .npy files"
        )
    return _open_arrays(paths, preprocess)


def _open_arrays(paths: Sequence[str], preprocess: ArrayPreprocess) -> Inputs:
    """Reads files of one example each, or of several along a first axis."""
    names, parts = list[str](), list[np.ndarray]()
    for path in paths:
        array = read_array(Path(path))
        is_one = array.shape in (preprocess.space, (*preprocess.space, preprocess.channels))
        parts.append(preprocess.to_batch(array[None] if is_one else array, path))
        names += [path] if is_one else [f"{path}[{i}]" for i in range(len(array))]
    if not names:
        raise UserError(f"{paths[0]} has no examples: expected at least one")
    examples = np.concatenate(parts)

    def batches(size: int, on_bad: OnBad) -> Batches:
        del on_bad
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            yield list(range(start, start + len(part))), part

    return Inputs(names, "array", batches)


def unreadable(error: BadExampleError) -> UserError:
    """Returns the error for an image that cannot be read."""
    return UserError(f"{error}: fix it, or skip it with --on-bad-example=skip")
