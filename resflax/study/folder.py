"""A study's folder: its settings, the parts that are done, the result and the pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flax import serialization

from resflax.errors import UserError
from resflax.files import write_atomic
from resflax.study.snapshot import Snapshot


class Codec(NamedTuple):
    """How a part is kept: the ending of its file, and both ways between it and bytes."""

    ending: str
    dump: Callable[[Any], bytes]
    load: Callable[[bytes], Any]


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


NUMBERS = Codec("json", _json, json.loads)
ARRAYS = Codec("msgpack", serialization.msgpack_serialize, serialization.msgpack_restore)


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
                write_atomic(file, _json(settings))
        except (OSError, json.JSONDecodeError) as e:
            raise UserError(f"{path} cannot hold a study: {e}: choose another --out") from e
        return cls(path, settings)

    def part(self, name: str, make: Callable[[], Any], form: Codec = NUMBERS) -> Any:
        """The part of that name: as it was kept, or made now and kept."""
        file = self._file(name, form.ending)
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, form.dump(make()))
        self.unfinished(name).remove()
        return form.load(file.read_bytes())

    def has(self, name: str, form: Codec = NUMBERS) -> bool:
        """Whether the part is done."""
        return self._file(name, form.ending).exists()

    def unfinished(self, name: str) -> Snapshot:
        """How far the training is that makes the part; removed when the part is kept."""
        return Snapshot(self._file(name, "unfinished"))

    def result(self, name: str, values: dict[str, Any]) -> None:
        """Writes the settings and `values` as `name.json`, whole or not at all."""
        write_atomic(self.path / f"{name}.json", _json({"settings": self.settings} | values))

    def _file(self, name: str, ending: str) -> Path:
        return self.path / "parts" / f"{name}.{ending}"


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any], within: str = "") -> None:
    for key in sorted(found.keys() | wanted.keys()):
        has, wants = found.get(key), wanted.get(key)
        if isinstance(has, dict) and isinstance(wants, dict):
            _compare(path, has, wants, f"{within}{key}.")
        elif has != wants:
            raise UserError(
                f"{path} holds a study with {within}{key} = {has}, not {wants}:"
                " choose another --out"
            )
