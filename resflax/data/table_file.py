"""Tables of image files and labels: CSV, TSV and JSON lines."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resflax.data.formats import is_image
from resflax.data.split_names import role_of_split
from resflax.errors import UserError

# Names of the columns, in any case, the preferred one first.
COLUMNS = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("image", "image_path", "image_file", "img"),
    ),
    "label": ("label", "class", "target", "class_name", "category"),
    "split": ("split", "subset", "set"),
}
EXPECTED = (
    "expected a CSV, TSV or JSON lines with the columns path (or file, filename, image) and label"
    " (or class, target), and perhaps split"
)
# Columns of a table without a header.
POSITIONS = (("path", "label"), ("label", "path"), ("path", "label", "split"))
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
DELIMITERS = ",;\t|"


class Row(NamedTuple):
    """An image of a table.

    Attributes:
      number: line of a CSV or JSON lines, from 1; position in a JSON list.
      path: its file, as in the table.
      label: its label; "" if it has none.
      split: its split; "" if it has none.
    """

    number: int
    path: str
    label: str
    split: str


class Table(NamedTuple):
    """The rows of a table, and its columns.

    Attributes:
      rows: the rows.
      columns: names of the columns that they are from, "" without a column.
      unused: names of the other columns.
    """

    rows: list[Row]
    columns: dict[str, str]
    unused: list[str]


def read_table(file: Path) -> Table:
    """Reads the images of a CSV, TSV or JSON lines.

    The separator is a comma, semicolon, tab or bar, by the first line. A first line with the path
    of an image is not a header: the columns are then `POSITIONS`. Paths that are not UTF-8 keep
    their bytes; UTF-16 is known by its byte order mark.

    Raises:
      UserError: if the file cannot be read, lacks a column, or has two rows for a path.
    """
    try:
        data = file.read_bytes()
        encoding = "utf-16" if data.startswith(UTF_16_MARKS) else "utf-8-sig"
        text = data.decode(encoding, errors="surrogateescape")
        records = list(_parse(text, file))
    except (OSError, ValueError, csv.Error) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(
            f"cannot read the table {file}: {getattr(e, 'strerror', None) or e}: {EXPECTED}"
        ) from e
    for number, record in records:
        if not isinstance(record, dict):
            raise UserError(f"{file} has {record!r:.40} in row {number}: {EXPECTED}")
    names = [name for _, record in records[:1] for name in record]
    columns = {kind: _column(names, usual) for kind, usual in COLUMNS.items()}
    if not columns["path"] or not columns["label"]:
        found = f"has the columns {', '.join(names)}" if names else "has no rows"
        raise UserError(f"{file} {found}: {EXPECTED}")
    rows = [
        Row(number, *(_text(record, columns[kind], number, file) for kind in COLUMNS))
        for number, record in records
    ]
    for row in rows:
        if not row.path:
            raise UserError(f"{file} has no path in row {row.number}: {EXPECTED}")
    counts = Counter(os.path.normpath(file.parent / row.path) for row in rows)
    if repeated := next((path for path, count in counts.items() if count > 1), None):
        raise UserError(f"{file} has more than one row for {repeated}: expected one per image")
    unused = [name for name in names if name and name not in columns.values()]
    return Table(_with_integer_labels(rows), columns, unused)


def _with_integer_labels(rows: list[Row]) -> list[Row]:
    """Returns the rows with "1" instead of "1.0", if all labels are whole numbers.

    pandas writes integers so, if one of them is missing.
    """
    if not all(re.fullmatch(r"-?\d+(\.0+)?|", row.label) for row in rows):
        return rows
    return [row._replace(label=row.label.partition(".")[0]) for row in rows]


def _parse(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the values of each row."""
    start = text.lstrip()[:1]
    if start == "[":
        records = json.loads(text)
        yield from enumerate(records, start=1)
    elif start == "{":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as e:
                    raise ValueError(f"{e.msg} in line {number}") from e
                yield number, record
    else:
        yield from _parse_csv(text, file)


def _parse_csv(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    for values in reader:
        if not values:
            continue
        if not names:
            positions = _positions(values)
            names = list(positions) or [name.strip() for name in values]
            if not positions:
                continue
        if len(values) != len(names):
            raise UserError(
                f"{file} has {len(values)} values in line {reader.line_num}: expected"
                f" {len(names)}, one per column"
            )
        else:
            yield reader.line_num, dict(zip(names, values, strict=True))


def _positions(values: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns of a first line that is not a header; () for a header.

    >>> _positions(["a.png", "cat", "train"]), _positions(["path", "label"])
    (('path', 'label', 'split'), ())
    """
    if not any(map(is_image, values)):
        return ()
    for names in POSITIONS:
        row = dict(zip(names, values, strict=False))
        is_complete = len(names) == len(values) and is_image(row["path"])
        if is_complete and ("split" not in row or role_of_split(row["split"])):
            return names
    return ()


def _column(names: Sequence[str], usual: Sequence[str]) -> str:
    """Returns the name of the first of the usual columns that a table has; "" if it has none."""
    by_name = {name.lower(): name for name in reversed(names)}
    return next((by_name[name] for name in usual if name in by_name), "")


def _text(record: dict[str, Any], column: str, number: int, file: Path) -> str:
    value = record.get(column) if column else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas converts columns of integers with gaps
    if isinstance(value, bool | list | dict | float):
        raise UserError(
            f"{file} has {column} {value!r} in row {number}: expected a text or an integer"
        )
    return "" if value is None else str(value).strip()
