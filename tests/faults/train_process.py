"""Small runs of `train.py` in separate processes, and their results."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sessions import SESSIONS, session_members

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.model=cifar_resnet8",
    "--config.spec.depths=(1,)",
    "--config.spec.widths=(4,)",
    "--config.spec.stem_width=4",
    "--config.batch_size=96",
    "--config.log_every_steps=4",
    "--config.checkpoint_every_steps=3",
]
# Examples on the device, images read by worker processes, and an ensemble.
PIPELINES = {
    "device": [*SMALL, "--config.epochs=6"],
    "workers": [
        *SMALL,
        "--config.epochs=6",
        "--config.data.image_size=8",
        "--config.data.num_workers=1",
        "--config.eval_every_epochs=3",
    ],
    "ensemble": [
        *SMALL,
        "--config.epochs=4",
        "--config.data.pad_crop=1",
        "--config.ensemble.size=3",
        "--config.ensemble.learning_rate=(0.05, 0.1, 0.2)",
    ],
}


def make_env(cache: Path, devices: int = 1) -> dict[str, str]:
    """Returns the environment of a run with its own cache and some virtual devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def write_digits(root: Path) -> str:
    """Writes digits as a folder of images, and returns the option that names the dataset."""
    from PIL import Image

    from resflax.data import load_dataset

    digits = load_dataset("digits")
    for split, part in (("train", digits.train), ("test", digits.test)):
        for i, (image, label) in enumerate(zip(part.images[:600], part.labels, strict=False)):
            path = root / split / f"{label}" / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    return f"--config.dataset=folder:{root}"


class TrainProcess:
    """One process of a run, with its output in a file.

    Args:
      workdir: workdir of the run.
      options: options of `train.py`.
      env: environment variables.
      launcher: command that starts Python, such as `mpirun`.
      log: file to append the output to; by default `WORKDIR.log`.
    """

    def __init__(
        self,
        workdir: Path,
        options: list[str],
        env: dict[str, str],
        launcher: Sequence[str] = (),
        log: str = "",
    ) -> None:
        self.log = Path(log or workdir.with_name(f"{workdir.name}.log"))
        with self.log.open("a") as out:
            self.process = SESSIONS.start(
                [*launcher, sys.executable, "train.py", *options, f"--workdir={workdir}"],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.start_time = time.monotonic()

    def is_running(self) -> bool:
        if self.process.poll() is None:
            return True
        SESSIONS.remove(self.process)
        return False

    def send(self, number: int) -> None:
        """Sends a signal to the process alone, not to its children."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kills the process alone, and waits for its end."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 300) -> int:
        """Waits for the end, and returns the exit status as a shell does."""
        status = self.process.wait(seconds)
        SESSIONS.remove(self.process)
        return status if status >= 0 else 128 - status

    def remaining(self) -> list[int]:
        """Returns its children that are still running, and the process itself if it is."""
        return session_members(self.process.pid)


def read_records(workdir: Path) -> list[str]:
    """Returns the lines of `metrics.jsonl` so far."""
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def read_outputs(workdir: Path) -> list[dict[str, Any]]:
    """Returns the results and the records of a finished run, without times."""
    from resflax.train.results import MEASURED

    results = json.loads((workdir / "results.json").read_text())
    entries = [results, *map(json.loads, read_records(workdir))]
    return [{k: v for k, v in entry.items() if k not in MEASURED} for entry in entries]


class Reference(NamedTuple):
    """An uninterrupted run.

    Attributes:
      folder: has the workdir and "cache", the compiled programs.
      options: options of `train.py`.
      outputs: result of `read_outputs`.
      seconds: time from start to end, with compiled programs in the cache.
    """

    folder: Path
    options: list[str]
    outputs: list[dict[str, Any]]
    seconds: float

    def is_almost_finished(self, workdir: Path) -> bool:
        """Returns whether a run of the same config has written all records but the last."""
        return len(read_records(workdir)) >= len(self.outputs) - 2


@functools.cache
def reference_run(pipeline: str) -> Reference:
    """Trains an uninterrupted run with one of `PIPELINES`, once."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    options = PIPELINES[pipeline]
    if pipeline == "workers":
        options = [*options, write_digits(folder / "images")]
    for name in ("first", "second"):  # the second finds the compiled programs of the first
        process = TrainProcess(folder / name, options, make_env(folder / "cache"))
        assert process.wait() == 0, process.log.read_text()
    seconds = time.monotonic() - process.start_time
    return Reference(folder, options, read_outputs(folder / "second"), seconds)
