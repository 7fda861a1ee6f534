"""A study's folder: its settings, the parts that are done, the result and the pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resflax.errors import UserError
from resflax.files import write_whole


class Folder:
    """Where a study keeps what it has: stopped and started again, it goes on from there."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any]) -> "Folder":
        """Makes the folder, or goes on in it.

        Raises:
          UserError: if it cannot be written, or holds a study with other settings.
        """
        settings = json.loads(json.dumps(settings))
        try:
            path.mkdir(parents=True, exist_ok=True)
            file = path / "settings.json"
            if file.exists():
                _compare(path, json.loads(file.read_text()), settings)
            else:
                _write(file, settings)
        except (OSError, json.JSONDecodeError) as e:
            raise UserError(f"{path} cannot hold a study: {e}: choose another --out") from e
        return cls(path, settings)

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """The part of that name: as it was kept, or made now and kept as JSON."""
        file = self.path / "parts" / f"{name}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            _write(file, make())
        return json.loads(file.read_text())

    def has(self, name: str) -> bool:
        """Whether the part is done."""
        return (self.path / "parts" / f"{name}.json").exists()

    def result(self, name: str, values: dict[str, Any]) -> None:
        """Writes the settings and `values` as `name.json`, whole or not at all."""
        _write(self.path / f"{name}.json", {"settings": self.settings} | values)


def _write(file: Path, values: Any) -> None:
    write_whole(file, (json.dumps(values, indent=1) + "\n").encode())


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{path} holds a study with {key} = {found.get(key)}, not {wanted.get(key)}:"
                " choose another --out"
            )
