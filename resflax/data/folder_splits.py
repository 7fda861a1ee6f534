"""Names of the folders that are the training, validation and test split of a folder of images."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from resflax.data.class_names import class_name
from resflax.data.formats import is_image
from resflax.data.litter import list_folders, list_visible, walk_files
from resflax.data.split_names import SPLIT_NAMES, role_of_split
from resflax.errors import UserError, first_names, unknown

# The training split of a folder of class folders without splits.
WHOLE_FOLDER = "."
MAX_DEPTH = 8  # in which a folder with splits is looked for
EXPECTED = (
    "expected train/CLASS/*.jpg and, to evaluate, val/CLASS/*.jpg or test/CLASS/*.jpg (or training,"
    " valid, validation, dev, testing; any image format), or CLASS/*.jpg without splits"
)


def find_splits(root: Path, chosen: Mapping[str, str] | None = None) -> dict[str, str]:
    """Finds the folders of the splits of a folder of images.

    A validation or test folder whose images are not in folders of the training classes, such as
    the test set of a competition, has no labels and is not a split.

    Args:
      root: the folder.
      chosen: names of the folders of some of the splits, used instead of `SPLIT_NAMES`; "" is none.

    Returns:
      The names of the folders of "train", "validation" and "test"; "" for a split that is missing.
      "train" is `WHOLE_FOLDER` if `root` has class folders and no splits.

    Raises:
      UserError: if there is no training split, or several folders could be the same split.
    """
    _check_exists(root)
    chosen = {role: name for role, name in (chosen or {}).items() if name}
    for name in chosen.values():
        if not (root / name).is_dir():
            raise _unknown_split(root, name)
    train = chosen.get("train") or _only(root, "train", _named(root, "train"))
    train = train or _whole_folder(root, chosen)
    splits = {"train": train}
    for role in ("validation", "test"):
        found = "" if train == WHOLE_FOLDER else _labeled(root, role, root / train)
        splits[role] = chosen.get(role) or found
    if not splits["validation"] and not splits["test"]:
        _check_validation_has_labels(root)
    return splits


def split_folder(root: Path, split: str) -> tuple[Path, Path | None]:
    """Finds the folder of one split, for evaluation.

    Args:
      root: a folder with splits, or one split.
      split: name of the split's folder, or a name in `SPLIT_NAMES`, which matches the folder of
        that split whatever its name; "" for the test split, the validation split if there is none,
        or `root` itself if it has no splits.

    Returns:
      The folder of the split, and that of the training split, None if there is none.

    Raises:
      UserError: if there is no such split, or several folders could be it.
    """
    _check_exists(root)
    train = _only(root, "train", _named(root, "train"))
    train_folder = root / train if train else None
    if split and (root / split).is_dir():
        return root / split, train_folder if (root / split) != root else None
    named = {role: _named(root, role) for role in SPLIT_NAMES}
    if not any(named.values()) and (not split or split.lower() in SPLIT_NAMES["train"]):
        return root, None
    if split:
        role = role_of_split(split)
        if not role or not named[role]:
            raise _unknown_split(root, split)
        return root / _only(root, role, named[role]), train_folder
    labeled = (_labeled(root, role, train_folder) for role in ("test", "validation"))
    flat = (_only(root, role, named[role]) for role in ("validation", "test"))
    if name := next(filter(None, labeled), "") or next(filter(None, flat), ""):
        return root / name, train_folder
    raise UserError(
        f"{root} contains {describe_contents(root)}: expected a folder test or val; or choose a"
        " split"
    )


def describe_splits(root: Path, splits: Mapping[str, str]) -> str:
    """Returns what to note on the splits of a folder besides their names; "" for nothing.

    Args:
      root: the folder.
      splits: made by `find_splits`.
    """
    if splits["train"] == WHOLE_FOLDER and not splits["validation"] and not splits["test"]:
        return f"{root} has class folders and no splits: all of it is the training split"
    notes = [f"{name}/ is not used{reason}" for name, reason in _unused(root, splits)]
    return f"{root}: {'; '.join(notes)}" if notes else ""


def _unused(root: Path, splits: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the folders with images that are not splits, and why."""
    if splits["train"] == WHOLE_FOLDER:
        return
    used = {Path(name).parts[0] for name in splits.values() if name}
    named = {name for role in ("validation", "test") for name in _named(root, role)}
    for name in (folder.name for folder in list_folders(root) if folder.name not in used):
        if name in named and is_unlabeled(root / name, root / splits["train"]):
            yield name, ": its images are not in folders of the training classes"
        elif has_images(root / name):
            choice = ", unless --config.data.validation_split or test_split chooses it"
            yield name, "" if name in named else choice


def _check_exists(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist: expected one with images")


def _unknown_split(root: Path, name: str) -> UserError:
    return unknown("split", name, [f.name for f in list_folders(root)] or ["(no folder)"])


def annotations_file(split: Path) -> Path:
    """Returns where Tiny ImageNet has the labels of the images in the folder of a split."""
    return split / f"{split.name}_annotations.txt"


def is_unlabeled(split: Path, train: Path | None) -> bool:
    """Returns whether the images of a split have no labels: are not in folders of classes.

    That is the case if there are no folders, or one that is not a class of the training split.
    """
    if annotations_file(split).is_file():
        return False
    folders = list_folders(split)
    if not folders:
        return has_images(split)
    if len(folders) > 1 or train is None or not has_images(folders[0]):
        return False
    return class_name(folders[0].name) not in {class_name(f.name) for f in list_folders(train)}


def has_images(folder: Path) -> bool:
    """Returns whether a folder or one below it has an image, by its suffix."""
    return any(is_image(path) for path in walk_files(folder))


def describe_contents(folder: Path) -> str:
    """Returns the first names in a folder, without litter, for messages."""
    names = [path.name + "/" * path.is_dir() for path in list_visible(folder)]
    return first_names(names, 8)


def _named(root: Path, role: str) -> list[str]:
    """Returns the folders with a name of a split; of several links to one folder, the first."""
    found = {
        os.path.realpath(path): path.name
        for path in reversed(list_folders(root))
        if path.name.lower() in SPLIT_NAMES[role]
    }
    return sorted(found.values())


def _labeled(root: Path, role: str, train: Path | None) -> str:
    return _only(root, role, [n for n in _named(root, role) if not is_unlabeled(root / n, train)])


def _only(root: Path, role: str, names: list[str]) -> str:
    if len(names) > 1:
        raise UserError(
            f"{root} has the folders {' and '.join(names)}, which could both be the {role} split:"
            f" rename or move one, or choose with --config.data.{role}_split={names[0]}"
        )
    return names[0] if names else ""


def _whole_folder(root: Path, chosen: Mapping[str, str]) -> str:
    """Returns `WHOLE_FOLDER` if the folder has classes and no splits.

    Raises:
      UserError: if it does not; the message says what is inside, and what may have been meant.
    """
    hint = next(_reasons_against_classes(root), "")
    if hint or chosen:
        contents = describe_contents(root) or "nothing"
        raise UserError(f"{root} contains {contents}, no training split: {hint or EXPECTED}")
    return WHOLE_FOLDER


def _reasons_against_classes(root: Path) -> Iterator[str]:
    """Yields why the folders in `root` are not classes, and what to do."""
    folders = list_folders(root)
    with_splits = [f for f in folders if _named(f, "train")]
    if with_splits:
        yield f"did you mean folder:{with_splits[0]}? It has a training split"
    if any(_named(root, role) for role in ("validation", "test")):
        yield EXPECTED
    if nested := next(filter(lambda f: _named(f, "train"), _only_folders(root)), None):
        yield f"did you mean folder:{nested}? It has a training split"
    if not folders and has_images(root):
        yield (
            f"images without class folders have no labels{_parent_hint(root)}: expected"
            " train/CLASS/*.jpg or CLASS/*.jpg, or a table of paths and labels (csv:FILE)"
        )
    if len(folders) == 1 and len(list_folders(folders[0])) > 1:
        yield f"did you mean folder:{folders[0]}? It contains {describe_contents(folders[0])}"
    if len(folders) == 1 and not list_folders(folders[0]) and has_images(folders[0]):
        yield (
            "one class cannot be learned; the dataset may be the folder one level above or below:"
            f" {EXPECTED}"
        )
    if len(folders) < 2 or not any(map(has_images, folders)):
        yield EXPECTED
    common = set.intersection(*({p.name for p in list_folders(f)} for f in folders))
    if len(common) > 1:
        yield (
            f"the folders have the same folders {', '.join(sorted(common)[:3])}, as splits have:"
            f" choose them with --config.data.train_split={_likely_train(folders)} and so on, or"
            " --config.data.train_split=. if they are the classes"
        )


def _only_folders(root: Path) -> Iterator[Path]:
    """Yields the only folder in a folder, the only one in that, and so on."""
    folders = list_folders(root)
    while len(folders) == 1 and len(folders[0].parts) - len(root.parts) < MAX_DEPTH:
        yield folders[0]
        folders = list_folders(folders[0])


def _likely_train(folders: list[Path]) -> str:
    return next((f.name for f in folders if "train" in f.name.lower()), folders[0].name)


def _parent_hint(root: Path) -> str:
    """Returns what to do if the folder is that of a class, and not of a dataset."""
    parent = root.absolute().parent
    siblings = [f for f in list_folders(parent) if f.name != root.name]
    is_class = any(is_image(path) for f in siblings[:1] for path in list_visible(f))
    return f" (did you mean folder:{parent}, one level up?)" if is_class else ""


def _check_validation_has_labels(root: Path) -> None:
    """Raises `UserError` if the only split to evaluate has no labels, unless it is a test split."""
    for name in _named(root, "validation"):
        raise UserError(
            f"the images in {root / name} are not in folders of the training classes: expected"
            f" {name}/CLASS/*.jpg, or a table with the columns path, label and split (csv:FILE)"
        )
