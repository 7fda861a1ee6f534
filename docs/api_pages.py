"""Pages of the API reference: the names that a package exports, for Sphinx's autodoc.

A package exports what its `__init__.py` imports as itself (`from a.b import c as c`), lazily or
not.
"""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = (
    "resflax",
    "resflax.nn",
    "resflax.zoo",
    "resflax.weights",
    "resflax.data",
    "resflax.train",
    "resflax.metrics",
    "resflax.inference",
    "resflax.export",
    "resflax.distributed",
)


class Export(NamedTuple):
    """A public name of a package: its module, and what it is."""

    package: str
    name: str
    module: str
    value: Any

    @property
    def path(self) -> str:
        """Dotted name under which users import it."""
        return f"{self.package}.{self.name}"

    @property
    def directive(self) -> str:
        """Directive of autodoc; "data" for tables and types."""
        if inspect.isclass(self.value):
            return "autoclass"
        return "autofunction" if callable(self.value) else "data"


def exports(package: str) -> list[Export]:
    """Returns the public names of a package, sorted."""
    module = importlib.import_module(package)
    found = {
        alias.name: node.module
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname == alias.name
    }
    return [Export(package, n, m, getattr(module, n)) for n, m in sorted(found.items())]


def write_api_pages(folder: Path) -> None:
    """Writes one page per package into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        (folder / f"{package}.rst").write_text(api_page(package))


def api_page(package: str) -> str:
    """Returns the page of a package as reStructuredText."""
    found = exports(package)
    documented = [export for export in found if export.directive != "data"]
    summary = "\n".join(f"   {export.path}" for export in documented)
    parts = [
        f"{package}\n{'=' * len(package)}",
        inspect.cleandoc(importlib.import_module(package).__doc__ or ""),
        f".. autosummary::\n   :nosignatures:\n\n{summary}",
        *map(_entry, found),
    ]
    return "\n\n".join(parts) + "\n"


def _entry(export: Export) -> str:
    if export.directive == "data":
        return _data_entry(export)
    lines = [f".. {export.directive}:: {export.path}"]
    if methods := inspect.isclass(export.value) and _public_methods(export.value):
        lines.append(f"   :members: {', '.join(methods)}")
    return "\n".join(lines)


def _public_methods(cls: type) -> list[str]:
    """Returns the methods and properties of a class itself that have a docstring."""
    return [
        name
        for name, value in vars(cls).items()
        if (not name.startswith("_") or name == "__call__")
        and (isinstance(value, classmethod | staticmethod | property) or inspect.isfunction(value))
        and inspect.getdoc(getattr(cls, name))
    ]


def _data_entry(export: Export) -> str:
    """Returns the entry of a table, with its rows, or of another constant."""
    value, source = export.value, _source_of(export)
    lines = [f".. py:data:: {export.path}"]
    if source.annotation:
        lines.append(f"   :type: {source.annotation}")
    lines += ["", f"   {source.comment}", ""]
    if isinstance(value, dict):
        rows = [f"``{key}``: {source.rows.get(key) or meaning(row)}" for key, row in value.items()]
        lines += [f"   - {row}" for row in rows]
    elif isinstance(value, tuple):
        lines.append(f"   Values: {', '.join(f'``{key}``' for key in value)}.")
    else:
        lines.append(f"   ``{value}``".replace("resflax.", ""))
    return "\n".join(lines)


def meaning(row: Any) -> str:
    """Returns what a row without a comment means: its `result`, or a function's first line."""
    if hasattr(row, "result"):  # of `resflax.inference.OPS`
        return row.result
    if not (inspect.isroutine(row) or hasattr(row, "__wrapped__")):
        return ""
    return " ".join((inspect.getdoc(row) or "").partition("\n\n")[0].split())


class Source(NamedTuple):
    """What the source code of a constant says about it.

    Attributes:
      annotation: its type, "" if there is none.
      comment: the comment above it.
      rows: of a dictionary, comments above or behind a key, by key.
    """

    annotation: str
    comment: str
    rows: dict[str, str]


def _source_of(export: Export) -> Source:
    lines = inspect.getsource(importlib.import_module(export.module)).splitlines()
    for node in ast.parse("\n".join(lines)).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id == export.name for t in targets):
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            table = getattr(node, "value", None)
            rows = _row_comments(table, lines) if isinstance(table, ast.Dict) else {}
            return Source(annotation, _comment_above(lines[: node.lineno - 1]), rows)
    return Source("", "", {})


def _row_comments(table: ast.Dict, lines: list[str]) -> dict[str, str]:
    """Returns the comments above the keys of a dictionary, or else those behind their rows."""
    comments = {}
    for key, row in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant):
            behind = lines[(row.end_lineno or row.lineno) - 1].encode()[row.end_col_offset or 0 :]
            after = behind.decode().partition("#")[2].strip()
            above = _comment_above(lines[: key.lineno - 1]) if key.lineno > table.lineno else ""
            comments[str(key.value)] = above or after
    return comments


def _comment_above(lines: list[str]) -> str:
    comment: list[str] = []
    while lines and lines[-1].lstrip().startswith("#"):
        comment.insert(0, lines.pop().lstrip(" #").rstrip())
    return " ".join(comment)
