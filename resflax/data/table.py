"""Datasets in a table of image files and labels: `csv:FILE`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from resflax.data.class_names import class_name, other_spelling, sort_labels
from resflax.data.folder import ImageFiles
from resflax.data.skipping import is_too_many
from resflax.data.source import SplitSources
from resflax.data.split_names import role_of_split, splits_by_name
from resflax.data.table_file import Row, Table, read_table
from resflax.errors import UserError, printable, unknown


class TableSource(ImageFiles):
    """The images of one split of a table, in the order of its rows (see `Source`).

    Args:
      file: the table; paths in it are relative to its folder.
      split: name of the split; "" for a table without a column of splits.
      rows: the rows of the split.
      classes: class names.

    Attributes:
      problems: rows without a label, and files that do not exist.
      missing: the classes without an image.

    Raises:
      UserError: if a label is not one of the classes, or so many files of a class do not exist that
        they cannot be skipped.
    """

    def __init__(
        self, file: Path, split: str, rows: Sequence[Row], classes: tuple[str, ...]
    ) -> None:
        super().__init__(file.parent, [], classes)
        self.name = f"{file}, {split}" if split else str(file)
        labels = {name: label for label, name in enumerate(classes)}
        lost, total = [0] * len(classes), [0] * len(classes)
        for row in rows:
            if not row.label:
                self.problems.append(printable(f"{file}: row {row.number} has no label"))
                continue
            name = class_name(row.label)
            if name not in labels:
                raise UserError(_unknown_label(file, row, name, classes))
            label = labels[name]
            total[label] += 1
            if (self.root / row.path).is_file():
                self.files.append((_relative(self.root, row.path), label))
            else:
                lost[label] += 1
                path = self.root / row.path
                self.problems.append(printable(f"{path}: does not exist (row {row.number})"))
        for name, label in labels.items():
            if is_too_many(lost[label], total[label]):
                raise UserError(
                    f"{self.name}: {lost[label]} of {total[label]} files of class {name!r} do not"
                    f" exist ({self.problems[0]}): expected paths relative to"
                    f" {self.root.absolute()}"
                )
        self.missing = [name for name, label in labels.items() if not total[label]]


def open_table(
    file: Path, on_bad_example: str, chosen: Mapping[str, str] | None = None
) -> SplitSources:
    """Opens the splits of a table; the classes are those of the training split.

    Args:
      file: a CSV, TSV or JSON lines; see `read_table`. Without a column of splits, all of it is the
        training split. A split without labels is not used, unless it is the training split.
      on_bad_example: "raise", or "skip" to leave out rows without a label or a file.
      chosen: names of some of the splits, used instead of the usual ones.

    Raises:
      UserError: if the table cannot be read, has no training split or one class only, or if another
        split has other classes; or if a row cannot be used.
    """
    table = read_table(file)
    by_split = _by_split(table)
    if table.columns["split"]:
        for split in (chosen or {}).values():
            _check_split(split, by_split)
        labeled = [split for split, rows in by_split.items() if any(row.label for row in rows)]
        names = splits_by_name(f"csv:{file}", filter(None, labeled), chosen or {})
    else:
        if any((chosen or {}).values()):
            raise UserError(f"{file} has no column split: splits cannot be chosen")
        names = {"train": "", "validation": "", "test": ""}
    classes = _classes(by_split[names["train"]])
    if len(classes) < 2:
        raise UserError(
            f"{file} has {len(classes)} class{'es' * (len(classes) != 1)}"
            f" {', '.join(map(repr, classes))} in the column {table.columns['label']} of the"
            " training split: expected two or more"
        )
    sources = {
        role: TableSource(file, name, by_split[name], classes)
        for role, name in names.items()
        if name or role == "train"
    }
    for source in sources.values():
        source.check_problems(on_bad_example)
        if source.missing:
            raise UserError(
                f"{source.name} has no images of class {source.missing[0]!r}, which the training"
                " split has: expected the same classes in all splits"
            )
    names["train"] = names["train"] or "train"
    test, validation = sources.get("test"), sources.get("validation")
    return SplitSources(sources["train"], validation, test, names, _note(file, table, names))


def open_table_split(file: Path, split: str, on_bad_example: str) -> TableSource:
    """Opens one split of a table.

    The classes are those of the training split if the table has one, else those of the split.

    Args:
      file: see `open_table`.
      split: name of the split, or a usual name of it such as "val"; "" for the test split, the
        validation split if there is none, or the whole table without a column of splits.
      on_bad_example: "raise", or "skip" to leave out rows without a label or a file, and to accept
        a split without images of some class of the training split.

    Raises:
      UserError: if there is no such split, or a row cannot be used.
    """
    table = read_table(file)
    by_split = _by_split(table)
    by_role = {role_of_split(name): name for name in by_split}
    has_splits = bool(table.columns["split"])
    if not has_splits and role_of_split(split or "train") == "train":
        name = ""
    elif split:
        name = split if split in by_split else by_role.get(role_of_split(split) or "none", split)
        _check_split(name, by_split)
    else:
        name = by_role.get("test", by_role.get("validation", ""))
        if not name:
            raise UserError(
                f"{file} has the splits {', '.join(by_split)}: expected test or val; or choose a"
                " split"
            )
    classes = _classes(by_split[by_role.get("train", name) if has_splits else ""])
    source = TableSource(file, name, by_split[name], classes)
    source.problems += [
        f"{source.name}: has no images of class {name!r}" for name in source.missing
    ]
    source.check_problems(on_bad_example)
    return source


def _by_split(table: Table) -> dict[str, list[Row]]:
    by_split: dict[str, list[Row]] = {}
    for row in table.rows:
        by_split.setdefault(row.split, []).append(row)
    return by_split


def _check_split(split: str, by_split: Mapping[str, Sequence[Row]]) -> None:
    if split and split not in by_split:
        raise unknown("split", split, filter(None, by_split))


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns the labels of some rows, sorted."""
    return sort_labels({class_name(row.label) for row in rows if row.label})


def _unknown_label(file: Path, row: Row, name: str, classes: tuple[str, ...]) -> str:
    spelling = other_spelling(name, classes)
    reason = f", but {spelling!r}, which differs only in case or spaces" if spelling else ""
    return (
        f"{file}: row {row.number} has the label {name!r}, which the training split lacks{reason}:"
        " expected the same classes in all splits"
    )


def _relative(root: Path, path: str) -> str:
    """Returns the path of a file relative to `root`, if it is below."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def _note(file: Path, table: Table, names: Mapping[str, str]) -> str:
    columns = f"paths from the column {table.columns['path']}, labels from {table.columns['label']}"
    ignored = f"; columns not used: {', '.join(table.unused)}" if table.unused else ""
    if not table.columns["split"]:
        return f"{file}: {columns}, no column split: all of it is the training split{ignored}"
    taken = ", ".join(f"{role} split {name}" for role, name in names.items() if name)
    unused = sorted({row.split for row in table.rows} - {*filter(None, names.values())})
    others = f"; not used: {', '.join(name or '(empty)' for name in unused)}" if unused else ""
    return f"{file}: {columns}, {taken}{others}{ignored}"
