"""The same run on other numbers of devices and processes, and by the other engine."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from lost import by_mpi, together
from starts import environment, lines

from resflax.study.nets import load_run

# 50 steps: 5 epochs of 10.
KEYS = [
    "--config.model=cifar_resnet20",
    "--config.batch_size=144",
    "--config.epochs=5",
    "--config.log_every_steps=1",
    "--config.learning_rate=0.05",
    "--config.warmup_epochs=1",
]


class Layout(NamedTuple):
    """How a run is spread: `devices` in all, over so many processes."""

    engine: str
    devices: int
    processes: int = 1
    fsdp: int = 1
    start: str = "by hand"


class Seen(NamedTuple):
    """What a run came to: the losses of its steps, and all parameters after the last, in a row."""

    losses: np.ndarray
    params: np.ndarray


class Row(NamedTuple):
    """How far a run's losses and its parameters, as one vector, are from another's, relative."""

    layout: Layout
    loss: float
    last: float
    largest: float
    params: float


def layouts() -> Iterator[Layout]:
    """All that are run; the first is what others are held against."""
    shapes = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    for engine, (devices, processes) in itertools.product(("pmap", "mesh"), shapes):
        for fsdp in (1, 2) if engine == "mesh" and devices > 1 else (1,):
            yield Layout(engine, devices, processes, fsdp)
    if shutil.which("mpirun"):
        for engine, count in itertools.product(("pmap", "mesh"), (2, 4)):
            yield Layout(engine, count, count, start="mpirun")


def run(place: Path, layout: Layout, keys: list[str]) -> Seen:
    """Trains on a layout, in a folder of its own in `place`."""
    workdir = place / "-".join(map(str, layout))
    keys = [*keys, f"--config.parallel={layout.engine}", f"--config.mesh.fsdp={layout.fsdp}"]
    env = environment(place / "cache", layout.devices // layout.processes)
    begin = by_mpi if layout.start == "mpirun" else together
    starts = begin(workdir, keys, env, layout.processes)
    statuses = [start.wait(600) for start in starts]
    assert not any(statuses), starts[0].log.read_text()[-2000:]
    records = [json.loads(line) for line in lines(workdir)]
    losses = np.array([r["loss"] for r in records if r["split"] == "train"])
    variables = load_run(workdir).variables
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(variables["params"])]
    return Seen(losses, np.concatenate(leaves, dtype=np.float64))


def apart(layout: Layout, seen: Seen, base: Seen) -> Row:
    """A run against the one that others are held against."""
    losses = np.abs(seen.losses - base.losses) / np.abs(base.losses)
    params = [np.linalg.norm(seen.params - base.params), np.linalg.norm(base.params)]
    last, largest = float(losses[-1]), float(losses.max())
    return Row(layout, float(seen.losses[-1]), last, largest, float(params[0] / params[1]))


def campaign() -> Iterator[Row]:
    """A row for each layout, held against the first; in float64 if JAX has it on."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    keys = [*KEYS, *["--config.dtype=float64"] * jax.config.jax_enable_x64]
    base = None
    for layout in layouts():
        seen = run(place, layout, keys)
        base = base or seen
        yield apart(layout, seen, base)
