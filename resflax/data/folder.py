"""Datasets in a folder of images: `root/<split>/<class>/*.jpg`, in any image format."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from resflax.data.class_names import class_name, other_spelling
from resflax.data.decode import decode
from resflax.data.fingerprint import Fingerprint, files_fingerprint
from resflax.data.folder_splits import (
    annotations_file,
    describe_contents,
    describe_splits,
    find_splits,
    has_images,
    split_folder,
)
from resflax.data.formats import is_image
from resflax.data.litter import list_folders, list_visible, walk_files
from resflax.data.skipping import is_too_many
from resflax.data.source import SplitSources, bad_example
from resflax.errors import UserError, printable


class ImageFiles:
    """Image files of one folder with a label each, in order (see `Source`).

    Args:
      root: the folder.
      files: each file, relative to `root`, and its label.
      classes: class names; () if the labels are indices and no names are known.
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

    def labels(self) -> Int[np.ndarray, " examples"]:
        """Returns the label of each file."""
        return np.array([label for _, label in self.files], np.int64)

    def read(
        self, index: int, channels: int = 0
    ) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        """Returns the pixels and the label of an example."""
        name, label = self.files[index]
        return decode(self.root / name, str(self.root / name), channels), label

    def check_problems(self, on_bad_example: str) -> None:
        """Raises `UserError` if the layout has a problem and `on_bad_example` is not "skip"."""
        if self.problems and on_bad_example != "skip":
            raise bad_example(self.problems[0])

    def fingerprint(self) -> Fingerprint:
        """Returns what identifies the files; see `files_fingerprint`."""
        return files_fingerprint(self.root, self.files)


class FolderSource(ImageFiles):
    """One split of a folder, ordered by class name, then by file name (see `Source`).

    The images of a class are all those below its folder.

    Attributes:
      problems: files that are not images, and images that are not in the folder of a class.
      missing: the classes without a folder.

    Raises:
      UserError: if a folder is not one of the classes, or has no images, or so many files that are
        not images that they cannot be skipped.
    """

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        super().__init__(root, [], classes)
        folders = class_folders(root)
        self.missing = [name for name in classes if name not in folders]
        for name, folder in folders.items():
            if name not in classes:
                raise UserError(_unknown_class(folder, other_spelling(name, classes)))
        for label, name in enumerate(classes):
            if name in folders:
                self._add_class(folders[name], label)
        for path in list_visible(root):
            if not path.is_dir() and is_image(path):
                self.problems.append(printable(f"{path}: is not in the folder of a class"))

    def _add_class(self, folder: Path, label: int) -> None:
        files = sorted(map(Path, walk_files(folder)))
        images = [file for file in files if is_image(file)]
        others = [file for file in files if not is_image(file)]
        if is_too_many(len(others), len(files)):
            raise UserError(
                f"{folder}: {len(others)} of {len(files)} files are not images by their suffix,"
                f" such as {others[0].name}: too many to skip them; convert or remove them"
            )
        if not images:
            raise UserError(f"{folder}: is a class without images: add some, or remove the folder")
        self.problems += [
            printable(f"{file}: does not have the suffix of an image") for file in others
        ]
        self.files += [(str(file.relative_to(self.root)), label) for file in images]


class AnnotatedSource(ImageFiles):
    """A split of Tiny ImageNet whose labels are in `val_annotations.txt` (see `Source`)."""

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        path = annotations_file(root)
        try:
            rows = [
                line.split("\t")
                for line in path.read_text(encoding="utf-8-sig").splitlines()
                if line.strip()
            ]
            labels = {row[0]: classes.index(class_name(row[1])) for row in rows}
        except (OSError, ValueError, IndexError) as e:
            raise UserError(
                f"cannot read {path}: {e}: expected a file name, a tab and a class per line"
            ) from e
        images = [file for file in sorted(map(Path, walk_files(root))) if is_image(file)]
        for file in images:
            if file.name not in labels:
                raise UserError(f"{path} has no line for {file.name}: expected one per image")
        files = [(str(file.relative_to(root)), labels[file.name]) for file in images]
        super().__init__(root, files, classes)
        present = {label for _, label in files}
        self.missing = [name for i, name in enumerate(classes) if i not in present]


def open_folder(
    root: Path, on_bad_example: str, chosen: Mapping[str, str] | None = None
) -> SplitSources:
    """Opens the splits of a folder; the classes are those of the training split.

    Args:
      root: the folder; see `find_splits`.
      on_bad_example: "raise", or "skip" to leave out files that are not images.
      chosen: names of the folders of some of the splits.

    Raises:
      UserError: if there is no training split, if it has only one class, or if another split has
        other classes; or if a file cannot be used.
    """
    names = find_splits(root, chosen)
    classes = tuple(class_folders(root / names["train"]))
    if len(classes) < 2:
        raise UserError(_too_few_classes(root / names["train"]))
    sources = {
        role: _open_source(root / name, classes, on_bad_example)
        for role, name in names.items()
        if name
    }
    for role, source in sources.items():
        if source.missing:
            raise UserError(
                f"{source.root}: has no images of class {source.missing[0]!r}, which the training"
                f" split has: expected the same classes in the {role} split"
            )
    note = describe_splits(root, names)
    return SplitSources(
        sources["train"], sources.get("validation"), sources.get("test"), names, note
    )


def open_folder_split(
    root: Path, split: str, on_bad_example: str
) -> FolderSource | AnnotatedSource:
    """Opens one split of a folder.

    The classes are those of the training split if the folder has one, since labels are numbered
    by it, and otherwise those of the split itself.

    Args:
      root: a folder with splits, `root/<split>/<class>/*.jpg`, or one split, `root/<class>/*.jpg`.
      split: see `split_folder`.
      on_bad_example: "raise", or "skip" to leave out files that are not images and to accept a
        split without images of some class of the training split.

    Raises:
      UserError: if the split is missing or empty, or has other classes than the training split; or
        if a file cannot be used.
    """
    folder, train = split_folder(root, split)
    classes = tuple(class_folders(train or folder))
    source = _open_source(folder, classes, on_bad_example)
    source.problems += [
        printable(f"{folder}: has no images of class {name!r} of the training split")
        for name in source.missing
    ]
    source.check_problems(on_bad_example)
    return source


def class_folders(split: Path) -> dict[str, Path]:
    """Returns the folder of each class of a split, sorted by the name of the class.

    Raises:
      UserError: if several folders have the name of one class.
    """
    folders = list_folders(split)
    counts = Counter(class_name(folder.name) for folder in folders)
    for name, count in counts.items():
        if count > 1:
            raise UserError(
                f"{split} has {count} folders for the class {name!r}, whose names differ only in"
                " how their accents are encoded: merge them"
            )
    return dict(sorted((class_name(folder.name), folder) for folder in folders))


def _open_source(
    folder: Path, classes: tuple[str, ...], on_bad_example: str
) -> FolderSource | AnnotatedSource:
    if annotations_file(folder).is_file():
        return AnnotatedSource(folder, classes)
    source = FolderSource(folder, classes)
    if not source.files:
        flat = any(map(is_image, list_visible(folder)))
        hint = " (images without class folders need a labels file)" if flat else ""
        raise UserError(f"{folder} contains no images: expected CLASS/*.jpg, *.png, ...{hint}")
    source.check_problems(on_bad_example)
    return source


def _unknown_class(folder: Path, spelling: str) -> str:
    if spelling:
        return (
            f"{folder}: the training split has the class {spelling!r}, whose name differs only in"
            " case or spaces: expected the same name in all splits"
        )
    return (
        f"{folder}: is a class that the training split lacks: expected the same classes in all"
        " splits"
    )


def _too_few_classes(split: Path) -> str:
    """Returns the error for a training split with one class or none, with the likely cause."""
    folders = list_folders(split)
    if not folders and has_images(split):
        cause = "images without class folders have no labels, unless a table gives them (csv:FILE)"
    elif len(folders) == 1 and len(list_folders(folders[0])) > 1:
        inside = f"{folders[0].name} contains {describe_contents(folders[0])}"
        cause = f"{inside}; if these are the classes, move them one level up"
    else:
        cause = "the dataset may be the folder one level above or below"
    return (
        f"{split} contains {describe_contents(split) or 'nothing'}: expected a folder for each of"
        f" two or more classes; {cause}"
    )
