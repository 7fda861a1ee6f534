"""Files of images and arrays by path, glob and folder; images decoded in threads."""

import collections
import concurrent.futures
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resflax.data.array_files import is_array
from resflax.data.decode import BadExampleError, check_header, decode, ignore_pillow_warnings
from resflax.data.eval_transform import EvalTransform
from resflax.data.formats import is_image
from resflax.data.litter import is_in_litter, walk_files
from resflax.errors import UserError
from resflax.files import expand_path


class FileKind(NamedTuple):
    """A kind of files.

    Attributes:
      noun: what they are.
      matches: whether a file has their suffix.
      suffixes: the suffixes, for people.
      example: a glob, for people.
    """

    noun: str
    matches: Callable[[str], bool]
    suffixes: str
    example: str


IMAGES = FileKind("image", is_image, ".jpg, .png and others", "photos/**/*.jpg")
ARRAYS = FileKind("array", is_array, ".npy or .npz", "signals/**/*.npy")


def find_images(patterns: Sequence[str]) -> list[str]:
    """Returns the image files that are named by paths, globs and folders; see `find_files`."""
    return find_files(patterns, IMAGES)


def find_files(patterns: Sequence[str], kind: FileKind) -> list[str]:
    """Returns the files of a kind that are named by paths, globs and folders.

    Args:
      patterns: files, which are returned as they are; folders, whose files with the suffix of the
        kind are returned, subfolders included, sorted; and globs, in which `**` matches any
        number of folders. Files and folders of systems and archives (see `litter`) are left out.
      kind: the kind.

    Raises:
      UserError: if a path does not exist, a glob matches no file, or a folder contains no file of
        the kind.
    """
    return [path for pattern in patterns for path in _expand(expand_path(pattern, kind.noun), kind)]


def names_arrays(pattern: str) -> bool:
    """Returns whether a path or a glob has the suffix of arrays, or a folder no images but arrays.

    >>> names_arrays("signals/*.npy"), names_arrays("photos/cat.jpg")
    (True, False)
    """
    if not os.path.isdir(pattern):
        return is_array(pattern)
    files = [*walk_files(pattern)]
    return any(map(is_array, files)) and not any(map(is_image, files))


def _expand(pattern: str, kind: FileKind) -> list[str]:
    if os.path.isdir(pattern):
        try:
            found = filter(kind.matches, walk_files(pattern))
            paths = sorted(found, key=lambda path: Path(path).parts)
        except OSError as e:
            raise UserError(f"cannot read the folder {e.filename}: {e.strerror}") from e
        if not paths:
            raise UserError(f"folder {pattern} contains no {kind.noun}s: expected {kind.suffixes}")
        return paths
    if os.path.lexists(pattern):
        return [pattern]
    if not glob.has_magic(pattern):
        raise UserError(f"{kind.noun} not found: {pattern}")
    matched = {path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    matches = [path for path in matched if not is_in_litter(path)]
    if not matches:
        raise UserError(f"no file matches {pattern}: expected a glob such as {kind.example!r}")
    return sorted(matches, key=lambda path: Path(path).parts)


def check_images(paths: Sequence[str], *, num_threads: int) -> None:
    """Reads the headers of image files: about a hundred microseconds each.

    Raises:
      BadExampleError: if a file cannot be read or is not an image; the first of them.
    """
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for problem in pool.map(_header_problem, paths):
            if problem:
                pool.shutdown(wait=False, cancel_futures=True)
                raise problem


def _header_problem(path: str) -> BadExampleError | None:
    ignore_pillow_warnings()
    try:
        with Image.open(path) as image:
            check_header(image, path)
    except BadExampleError as e:
        return e
    except Exception:  # as in `decode`
        try:
            decode(Path(path), path, channels=3)  # for its message
        except BadExampleError as e:
            return e
    return None


def read_batches(
    paths: Sequence[str],
    transform: EvalTransform,
    channels: int,
    batch_size: int,
    *,
    num_threads: int,
    on_bad: Callable[[BadExampleError], None],
) -> Iterator[tuple[list[int], UInt8[np.ndarray, "n height width channels"]]]:
    """Decodes, resizes and crops image files in threads, a few batches ahead.

    Args:
      paths: image files.
      transform: resize and crop.
      channels: 1 to convert all images to gray, 3 to RGB.
      batch_size: number of images per batch; the last batch may be smaller.
      num_threads: number of threads.
      on_bad: called with the error of each unreadable image, which is left out unless it raises.

    Yields:
      The indices of the images in `paths`, and their pixels.
    """

    def read(path: str) -> UInt8[np.ndarray, "height width channels"]:
        return transform.apply(decode(Path(path), path, channels))

    indices, images = list[int](), list[np.ndarray]()
    for index, future in enumerate(_map_ahead(read, paths, num_threads, 2 * batch_size)):
        try:
            image = future.result()
        except BadExampleError as e:
            on_bad(e)
            continue
        indices.append(index)
        images.append(image)
        if len(images) == batch_size:
            yield indices, np.stack(images)
            indices, images = [], []
    if images:
        yield indices, np.stack(images)


def _map_ahead(
    read: Callable[[str], np.ndarray], paths: Sequence[str], num_threads: int, ahead: int
) -> Iterator[concurrent.futures.Future[np.ndarray]]:
    """Yields the futures of `read(path)` in order, while later ones are computed in threads."""
    pool = concurrent.futures.ThreadPoolExecutor(num_threads)
    try:
        remaining = iter(paths)
        futures = collections.deque(pool.submit(read, p) for p in islice(remaining, ahead))
        while futures:
            yield futures.popleft()
            futures.extend(pool.submit(read, path) for path in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)
