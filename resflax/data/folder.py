"""Datasets in a folder of images: `root/<split>/<class>/*.jpg|png`."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from resflax.data.decode import BadExampleError, decode
from resflax.data.fingerprint import Fingerprint, files_fingerprint
from resflax.data.source import bad_example
from resflax.errors import UserError, unknown

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_SPLITS = ("test", "val", "validation")


class ImageFiles:
    """Image files of one folder with a label each: what all such sources have in common.

    Args:
      root: the folder.
      files: each file, relative to `root`, and its label.
      classes: class names.
    """

    def __init__(self, root: Path, files: list[tuple[str, int]], classes: tuple[str, ...]) -> None:
        self.name, self.root, self.files, self.classes = str(root), root, files, classes
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.files)

    def location(self, index: int) -> str:
        """Returns the file of an example."""
        return str(self.root / self.files[index][0])

    def file_name(self, index: int) -> str:
        """Returns the file of an example, relative to the folder."""
        return self.files[index][0]

    def fingerprint(self) -> Fingerprint:
        """Returns the number of files, by label, and a digest of their names and sizes."""
        return files_fingerprint(self.root, self.files)


class FolderSource(ImageFiles):
    """One split of a folder, ordered by class name, then by file name (see `Source`)."""

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        super().__init__(root, [], classes)
        for label, name in enumerate(classes):
            folder = root / name
            files = sorted(list_visible(folder)) if folder.is_dir() else []
            if not files:
                self.problems.append(f"{folder}: is a class without images")
            self.files += [(str(file.relative_to(root)), label) for file in files]

    def read(
        self, index: int, channels: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Returns the pixels and the label of an example."""
        name, label = self.files[index]
        path = self.root / name
        if path.suffix.lower() not in SUFFIXES:
            raise BadExampleError(str(path), f"is not a {', '.join(SUFFIXES)} file")
        return decode(path, str(path), channels), label


def open_folder(root: Path, on_bad_example: str) -> tuple[FolderSource, FolderSource]:
    """Opens the training and the test split; the classes are those of the training split.

    Raises:
      UserError: if a split is missing or empty; or, if `on_bad_example` is "raise", if a class has
        no images or the test split has a class that the training split lacks.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist: expected {root}/train/CLASS/*.jpg")
    test = next((name for name in TEST_SPLITS if (root / name).is_dir()), "")
    if not (root / "train").is_dir() or not test:
        names = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise UserError(f"{root} contains {names}: expected the folders train and test")
    classes = _classes(root / "train")
    sources = FolderSource(root / "train", classes), FolderSource(root / test, classes)
    sources[1].problems += [
        f"{root / test / name}: is a class that the training split lacks"
        for name in _classes(root / test)
        if name not in classes
    ]
    problems = sources[0].problems + sources[1].problems
    if problems and on_bad_example != "skip":
        raise bad_example(problems[0])
    for source in sources:
        if not len(source):
            raise UserError(f"{source.root} contains no images: expected CLASS/*.jpg or *.png")
    return sources


def open_folder_split(root: Path, split: str, on_bad_example: str) -> FolderSource:
    """Opens one split of a folder.

    The classes are those of the training split if the folder has one, since labels are numbered
    by it, and otherwise those of the split itself.

    Args:
      root: a folder with splits, `root/<split>/<class>/*.jpg`, or one split, `root/<class>/*.jpg`.
      split: name of the split's folder; "" for the first of `TEST_SPLITS`, or for `root` itself.
      on_bad_example: "raise" or "skip".

    Raises:
      UserError: if the split is missing or empty; or, if `on_bad_example` is "raise", if a class
        has no images or is not in the training split.
    """
    folder = split_folder(root, split)
    has_train = folder != root and (root / "train").is_dir()
    classes = _classes(root / "train" if has_train else folder)
    source = FolderSource(folder, classes)
    source.problems += [
        f"{folder / name}: is a class that the training split lacks"
        for name in _classes(folder)
        if name not in classes
    ]
    if source.problems and on_bad_example != "skip":
        raise bad_example(source.problems[0])
    if not len(source):
        flat = any(path.suffix.lower() in SUFFIXES for path in list_visible(folder))
        hint = " (images without class folders need a labels file)" if flat else ""
        raise UserError(f"{folder} contains no images: expected CLASS/*.jpg or *.png{hint}")
    return source


def split_folder(root: Path, split: str) -> Path:
    """Returns the folder of a split; see `open_folder_split`.

    Raises:
      UserError: if there is none.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist: expected one with images")
    if split:
        if not (root / split).is_dir():
            raise unknown("split", split, _classes(root) or ["(no folder)"])
        return root / split
    test = next((name for name in TEST_SPLITS if (root / name).is_dir()), "")
    if not test and (root / "train").is_dir():
        names = ", ".join(sorted(path.name for path in root.iterdir())[:8])
        raise UserError(f"{root} contains {names}: expected the folder test; or choose a split")
    return root / test


def _classes(split: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in list_visible(split) if path.is_dir()))


def list_visible(folder: Path) -> list[Path]:
    """Returns what is in a folder, without hidden files such as `._x.png` of macOS."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
