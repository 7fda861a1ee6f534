"""A folder of images as a dataset: `root/<split>/<class>/*.jpg|png`."""

from pathlib import Path

import numpy as np

from resflax.data.decode import BadExampleError, decode
from resflax.data.source import bad_example
from resflax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST = ("test", "val", "validation")


class FolderSource:
    """A split of a folder. Examples are counted class by class, by name in each (see `Source`)."""

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        self.name, self.root, self.classes = str(root), root, classes
        self.files: list[tuple[str, int]] = []
        self.faults: list[str] = []
        for label, name in enumerate(classes):
            folder = root / name
            files = sorted(_visible(folder)) if folder.is_dir() else []
            if not files:
                self.faults.append(f"{folder}: is a class without images")
            self.files += [(str(file.relative_to(root)), label) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        """The file of an example."""
        return str(self.root / self.files[index][0])

    def read(self, index: int, channels: int = 0) -> tuple[np.ndarray, int]:
        """Pixels and label of an example."""
        name, label = self.files[index]
        path = self.root / name
        if path.suffix.lower() not in SUFFIXES:
            raise BadExampleError(str(path), f"is none of {', '.join(SUFFIXES)}")
        return decode(path, str(path), channels), label


def open_folder(root: Path, policy: str) -> tuple[FolderSource, FolderSource]:
    """The training and the test split; the classes are those of the first.

    Raises:
      UserError: if a split is missing or empty; if a class has no images, or the test split one
        that the training split lacks, unless `policy` is "skip".
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: expected {root}/train/CLASS/*.jpg")
    test = next((name for name in TEST if (root / name).is_dir()), "")
    if not (root / "train").is_dir() or not test:
        held = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise UserError(f"{root} holds {held}: expected the folders train and test")
    splits = {name: _classes(root / name) for name in ("train", test)}
    classes = splits["train"]
    sources = [FolderSource(root / name, classes) for name in splits]
    faults = [fault for source in sources for fault in source.faults]
    for name in splits[test]:
        if name not in classes:
            fault = f"{root / test / name}: is a class that train lacks"
            faults.append(fault)
            sources[1].faults.append(fault)
    if faults and policy != "skip":
        raise bad_example(faults[0])
    for source in sources:
        if not len(source):
            raise UserError(f"{source.root} holds no images: expected CLASS/*.jpg or *.png")
    return sources[0], sources[1]


def _classes(split: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in _visible(split) if path.is_dir()))


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
