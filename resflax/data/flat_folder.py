"""Images without class folders, with their labels in a file, as ImageNet's validation split."""

from pathlib import Path

from resflax.data.class_names import class_name, other_spelling
from resflax.data.folder import ImageFiles
from resflax.data.formats import is_image
from resflax.data.imagenet import (
    GROUND_TRUTH,
    development_kit_synsets,
    synsets,
    validation_number,
)
from resflax.data.litter import list_visible
from resflax.data.table_file import read_table
from resflax.errors import UserError

FORMS = (
    "expected one 0-based class index, synset or class name per line, in the order of the sorted"
    " file names; a CSV, TSV or JSON lines with the columns path and label; or the development"
    f" kit's {GROUND_TRUTH}"
)
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")


def open_unlabeled_folder(root: Path) -> ImageFiles:
    """Opens the images that are directly in a folder, all with label 0 of the class ""."""
    files = _image_names(root) if root.is_dir() else []
    return ImageFiles(root, [(file, 0) for file in files], ("",))


def open_flat_folder(
    root: Path, labels_file: Path, class_names: tuple[str, ...], num_classes: int = 0
) -> ImageFiles:
    """Opens a folder of images whose labels are in a file.

    Args:
      root: the folder.
      labels_file: see `FORMS`. Integers are 0-based indices, except in a file with the name
        `GROUND_TRUTH`, which has the IDs of the development kit, 1 to 1000. If all images have
        the names of ImageNet's validation images, line `i` is the label of number `i`, and lines
        of absent images are not used.
      class_names: the names that labels can have besides synsets; () if unknown.
      num_classes: number of classes that indices are of; 0 if unknown.

    Raises:
      UserError: if the labels cannot be read, or do not fit the images.
    """
    if labels_file.suffix.lower() in TABLE_SUFFIXES:
        files, labels = _read_table(labels_file)
        missing = next((name for name in files if not (root / name).is_file()), None)
        if missing is not None:
            raise UserError(f"{labels_file} has the image {missing}: {root} does not")
    else:
        lines, files = _read_lines(labels_file), _image_names(root)
        if not files:
            raise UserError(f"{root} contains no images: expected files such as .jpg or .png")
        labels = _labels_of_files(files, lines, labels_file, root)
    if labels_file.name == GROUND_TRUTH:
        labels = [_synset_of_id(label, labels_file) for label in labels]
    indices, classes = _parse_labels(labels, class_names, num_classes, labels_file)
    return ImageFiles(root, list(zip(files, indices, strict=True)), classes)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"cannot read the labels file {path}: {reason}") from e


def _image_names(root: Path) -> list[str]:
    return [path.name for path in list_visible(root) if is_image(path) and not path.is_dir()]


def _read_table(path: Path) -> tuple[list[str], list[str]]:
    rows = read_table(path).rows
    if unlabeled := next((row for row in rows if not row.label), None):
        raise UserError(f"{path} has no label in row {unlabeled.number}: {FORMS}")
    return [row.path for row in rows], [row.label for row in rows]


def _labels_of_files(files: list[str], lines: list[str], path: Path, root: Path) -> list[str]:
    labels = [line.strip() for line in lines]
    while labels and not labels[-1]:
        labels.pop()
    numbers = [number for number in map(validation_number, files) if number is not None]
    if len(numbers) == len(files) and max(numbers) <= len(labels) and min(numbers) >= 1:
        labels = [labels[number - 1] for number in numbers]
    if len(labels) != len(files):
        raise UserError(f"{path} has {len(labels)} labels for {len(files)} images in {root}")
    return labels


def _synset_of_id(label: str, path: Path) -> str:
    ids = development_kit_synsets()
    if not label.isdecimal() or not 1 <= int(label) <= len(ids):
        raise UserError(f"{path} has the label {label!r}: expected an ID from 1 to {len(ids)}")
    return ids[int(label) - 1]


def _parse_labels(
    labels: list[str], class_names: tuple[str, ...], num_classes: int, path: Path
) -> tuple[list[int], tuple[str, ...]]:
    """Returns label indices, and the class names that they index; () if unknown."""
    labels = [*map(class_name, labels)]
    known = [*map(class_name, class_names)]
    if all(label.isdecimal() for label in labels) and not set(labels) <= set(known):
        indices = [int(label) for label in labels]
        if num_classes and max(indices) >= num_classes:
            raise UserError(
                f"{path} has the label {max(indices)}: expected indices from 0 to"
                f" {num_classes - 1}, the classes of the model"
            )
        return indices, class_names
    for names in (class_names, synsets()):
        index = {class_name(name): i for i, name in enumerate(names)}
        if set(labels) <= set(index):
            return [index[label] for label in labels], names
    label = next(label for label in labels if label not in known)
    other = other_spelling(label, known)
    hint = f", but {other!r}, which differs only in case or spaces, is" if other else ""
    raise UserError(
        f"{path} has the label {label!r}, which is not a class of the model{hint}: {FORMS}"
    )
