"""Imports run downward only: the floors of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "errors": 0,
    "cache": 0,
    "files": 0,
    "picture": 0,
    "nn": 1,
    "data": 1,
    "zoo": 2,
    "train": 2,
    "weights": 3,
    "study": 4,
}
FILES = sorted(p for p in (ROOT / "resflax").rglob("*.py") if p.parent != ROOT / "resflax")


def imports(path):
    """Every module of the package that a file imports, at any depth, as ["resflax", room, ...]."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".") for name in names if name.split(".")[0] == "resflax")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downward(path):
    room = path.relative_to(ROOT / "resflax").parts[0]
    for target in imports(path):
        assert len(target) > 1, f"{path} imports the package's top"
        assert target[1] == room or FLOORS[target[1]] < FLOORS[room], (
            f"{path} imports {'.'.join(target)}"
        )


def test_every_room_has_a_floor():
    rooms = {p.relative_to(ROOT / "resflax").parts[0] for p in FILES}
    assert rooms <= set(FLOORS)


def test_only_one_file_says_pmap_mesh_or_sharding():
    saying = {
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("pmap", "shard_map", "device_put"))
        or (isinstance(node, ast.ImportFrom) and node.module == "jax.sharding")
    }
    assert saying == {"parallel.py"}


def test_only_residual_adds_a_shortcut():
    """No other file of the core holds a sum of two arrays' names."""
    adding = {
        path.name
        for path in (ROOT / "resflax" / "nn").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and isinstance(node.left, ast.Name)
        and isinstance(node.right, ast.Name)
    }
    assert adding == {"residual.py"}
