"""Small runs of `train.py` in processes of their own, to be hurt, and what they leave."""

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

ROOT = Path(__file__).parents[2]
TINY = [
    "--config.model=cifar_resnet8",
    "--config.spec.depths=(1,)",
    "--config.spec.widths=(4,)",
    "--config.spec.stem_width=4",
    "--config.batch_size=96",
    "--config.log_every_steps=4",
    "--config.checkpoint_every_steps=3",
]
# Each kind with a road of its own: examples on the devices, and read by worker processes.
KINDS = {
    "resident": [*TINY, "--config.epochs=6"],
    "workers": [
        *TINY,
        "--config.epochs=6",
        "--config.data.image_size=8",
        "--config.data.num_workers=1",
        "--config.eval_every_epochs=3",
    ],
}
VARIES = ("wall_seconds", "examples_per_second")


def environment(home: Path, devices: int = 1) -> dict[str, str]:
    """With a cache of its own, and some virtual devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XDG_CACHE_HOME": str(home), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def images(root: Path) -> str:
    """The digits as a folder of images; the name of the dataset."""
    from PIL import Image

    from resflax.data import load_dataset

    digits = load_dataset("digits")
    for split, part in (("train", digits.train), ("test", digits.test)):
        for i, (image, label) in enumerate(zip(part.images[:600], part.labels, strict=False)):
            path = root / split / f"{label}" / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    return f"--config.dataset=folder:{root}"


class Start:
    """One start of a run, `by` another command if one is named; its output goes to a file."""

    def __init__(
        self,
        workdir: Path,
        keys: list[str],
        env: dict[str, str],
        by: Sequence[str] = (),
        log: str = "",
    ) -> None:
        self.log = Path(log or workdir.with_name(f"{workdir.name}.log"))
        command = [*by, sys.executable, "train.py", *keys, f"--workdir={workdir}"]
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.began = time.monotonic()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the trainer alone, not to what it started."""
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """The exit status, as a shell tells it."""
        status = self.process.wait(seconds)
        return status if status >= 0 else 128 - status

    def left_over(self) -> list[int]:
        """The processes of its session that still live."""
        left = []
        for path in Path("/proc").iterdir():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if path.name.isdecimal() and int(fields[3]) == self.process.pid and fields[0] != "Z":
                left.append(int(path.name))
        return left


def lines(workdir: Path) -> list[str]:
    """The records that a run has written so far."""
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def told(workdir: Path) -> Any:
    """What a run has left, without what varies: its results and its records."""
    results = json.loads((workdir / "results.json").read_text())
    entries = [results, *map(json.loads, lines(workdir))]
    return [{k: v for k, v in entry.items() if k not in VARIES} for entry in entries]


class Reference(NamedTuple):
    """A run that was not hurt: the folder it lies in, how to start it, what it left, how long."""

    place: Path
    keys: list[str]
    left: Any
    seconds: float

    def nearly(self, workdir: Path) -> bool:
        """Whether another run has made all but its last record: this one may have been slower."""
        return len(lines(workdir)) >= len(self.left) - 2


@functools.cache
def reference(kind: str) -> Reference:
    """The run of a kind, made once; beside it is what it compiled, "cache"."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    keys = [*KINDS[kind], *([images(place / "images")] if kind == "workers" else [])]
    for name in ("warm", "whole"):  # the second has what the first compiled, as the others will
        start = Start(place / name, keys, environment(place / "cache"))
        assert start.wait() == 0, start.log.read_text()
    return Reference(place, keys, told(place / "whole"), time.monotonic() - start.began)
