"""The same run with other engines and numbers of devices and processes."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from lost import start_processes, start_with_mpirun
from models import checkpoint_template
from train_process import make_env, read_records

from resflax.cli.main import silence_libraries
from resflax.run.checkpoint import restore_latest

# 50 steps: 5 epochs of 10.
OPTIONS = [
    "--config.model=cifar_resnet20",
    "--config.batch_size=144",
    "--config.epochs=5",
    "--config.log_every_steps=1",
    "--config.learning_rate=0.05",
    "--config.warmup_epochs=1",
]
# Maximum relative difference of the losses in float32. In float64 they differ far less.
LOSS_RTOL = 1e-4


class Layout(NamedTuple):
    """Engine and number of devices of a run, all processes together."""

    engine: str
    devices: int
    processes: int = 1
    fsdp: int = 1
    launcher: str = "manual"


class Outcome(NamedTuple):
    """Loss of each step, and all parameters after the last one as a vector."""

    losses: np.ndarray
    params: np.ndarray


class Difference(NamedTuple):
    """Relative differences between a run and the first one.

    Attributes:
      layout: layout of the run.
      loss: loss of the last step.
      last: difference of the last step's losses.
      largest: largest difference of the losses.
      params: difference of the parameters, in the L2 norm.
    """

    layout: Layout
    loss: float
    last: float
    largest: float
    params: float


def all_layouts() -> Iterator[Layout]:
    """Yields all layouts; the others are compared to the first."""
    shapes = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    for engine, (devices, processes) in itertools.product(("pmap", "mesh"), shapes):
        for fsdp in (1, 2) if engine == "mesh" and devices > 1 else (1,):
            yield Layout(engine, devices, processes, fsdp)
    if shutil.which("mpirun"):
        for engine, count in itertools.product(("pmap", "mesh"), (2, 4)):
            yield Layout(engine, count, count, launcher="mpirun")


def train(folder: Path, layout: Layout, options: list[str]) -> Outcome:
    """Trains with a layout, in a new directory in `folder`."""
    workdir = folder / "-".join(map(str, layout))
    options = [
        *options,
        f"--config.parallel={layout.engine}",
        f"--config.mesh.fsdp={layout.fsdp}",
    ]
    env = make_env(folder / "cache", layout.devices // layout.processes)
    start = start_with_mpirun if layout.launcher == "mpirun" else start_processes
    processes = start(workdir, options, env, layout.processes)
    statuses = [process.wait(600) for process in processes]
    assert not any(statuses), processes[0].log.read_text()[-2000:]
    records = [json.loads(line) for line in read_records(workdir)]
    losses = np.array([r["loss"] for r in records if r["split"] == "train"])
    restored = restore_latest(workdir / "checkpoints", checkpoint_template(workdir))
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(restored.tree["state"].params)]
    return Outcome(losses, np.concatenate(leaves, dtype=np.float64))


def compare(layout: Layout, outcome: Outcome, first: Outcome) -> Difference:
    """Compares a run to the first one."""
    losses = np.abs(outcome.losses - first.losses) / np.abs(first.losses)
    params = np.linalg.norm(outcome.params - first.params) / np.linalg.norm(first.params)
    last, largest = float(losses[-1]), float(losses.max())
    return Difference(layout, float(outcome.losses[-1]), last, largest, float(params))


def campaign() -> Iterator[Difference]:
    """Trains with each layout and yields its difference; in float64 if JAX has it enabled."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    options = [*OPTIONS, *["--config.dtype=float64"] * jax.config.jax_enable_x64]
    first = None
    for layout in all_layouts():
        outcome = train(folder, layout, options)
        first = first or outcome
        yield compare(layout, outcome, first)


COLUMNS = (
    "engine", "devices", "processes", "fsdp", "launcher", "final loss", "difference",
    "largest difference", "parameters",
)  # fmt: skip


def main() -> bool:
    """Prints the differences as a table; returns whether all are small."""
    silence_libraries()
    passed = True
    print("|", " | ".join(COLUMNS), "|")
    print("|---|--:|--:|--:|---|--:|--:|--:|--:|")
    for row in campaign():
        figures = [f"{row.loss:.6f}", *(f"{x:.1e}" for x in row[2:])]
        print("|", " | ".join([*map(str, row.layout), *figures]), "|", flush=True)
        passed &= row.largest < LOSS_RTOL
    return passed
