"""The directory of a study: settings, finished parts, runs in progress, result and figures."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flax import serialization

from resflax.errors import UserError
from resflax.files import disk_errors_as_user_error, write_atomic
from resflax.progress import ProgressMeter
from resflax.run.workdir import Workdir

OPTION = "--out"


class Codec(NamedTuple):
    """File format of a part: suffix, and conversion to and from bytes."""

    suffix: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _encode_json(values: Any) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


JSON = Codec("json", _encode_json, json.loads)
MSGPACK = Codec("msgpack", serialization.msgpack_serialize, serialization.msgpack_restore)


def part_file(path: Path, name: str, codec: Codec = JSON) -> Path:
    """Returns the file of a part of the study in a directory; it exists if the part is finished."""
    return path / "parts" / f"{name}.{codec.suffix}"


class StudyDir:
    """Directory of a study, which resumes a stopped study without repeating finished parts.

    `config.json` has the settings. `parts/` has a file for each finished part, and the workdir of
    each training in progress. One process at a time can use it.

    Attributes:
      path: path of the directory.
      settings: JSON values that identify the study.
    """

    def __init__(self, workdir: Workdir, settings: dict[str, Any]) -> None:
        self._workdir, self.path, self.settings = workdir, workdir.path, settings

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any]) -> "StudyDir":
        """Creates the directory, or opens it to resume its study.

        Raises:
          UserError: if it cannot be written, has a study with other settings, or is in use.
        """
        settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        return cls(Workdir.open(path, settings, option=OPTION), settings)

    def close(self) -> None:
        """Releases the lock on the directory."""
        self._workdir.close()

    def __enter__(self) -> "StudyDir":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def has_part(self, name: str, codec: Codec = JSON) -> bool:
        """Returns whether the part is finished."""
        return part_file(self.path, name, codec).exists()

    def part(self, name: str, compute: Callable[[], Any], codec: Codec = JSON) -> Any:
        """Returns a part, which is computed and written if it is not finished.

        Raises:
          UserError: if it cannot be written, or its file is corrupt.
        """
        file = part_file(self.path, name, codec)
        if not file.exists():
            self._write(file, codec.encode(compute()))
        shutil.rmtree(self.workdir(name), ignore_errors=True)
        try:
            return codec.decode(file.read_bytes())
        except ValueError as e:
            raise UserError(f"{file} is corrupt: delete it to compute it again") from e

    def parts(
        self, compute: dict[str, Callable[[], Any]], cost: dict[str, float]
    ) -> dict[str, Any]:
        """Returns several parts by name, with a progress meter.

        Args:
          compute: function that computes each part.
          cost: cost of each part, in any unit.
        """
        results = {}
        with contextlib.closing(ProgressMeter(sum(cost.values()))) as meter:
            for name, function in compute.items():
                if self.has_part(name):
                    meter.skip(cost[name])
                    results[name] = self.part(name, function)
                else:
                    results[name] = self.part(name, function)
                    meter.update(cost[name], name)
        return results

    def workdir(self, name: str) -> Path:
        """Returns the workdir of a training in progress; removed when its part is done."""
        return self.path / "parts" / f"{name}.run"

    def write_result(self, name: str, values: dict[str, Any]) -> None:
        """Writes the settings and `values` to `name.json`."""
        self._write(self.path / f"{name}.json", _encode_json({"settings": self.settings} | values))

    def _write(self, file: Path, data: bytes) -> None:
        with disk_errors_as_user_error(
            f"workdir {self.path} cannot be written",
            lambda: f"make room, or choose another {OPTION}",
        ):
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, data)
