"""The same run on other numbers of devices and processes, and by the other engine."""

import json
import tempfile
from pathlib import Path

from lost import together
from starts import environment, lines

KEYS = [
    "--config.model=cifar_resnet20",
    "--config.batch_size=64",
    "--config.log_every_steps=1",
    "--config.learning_rate=0.05",
    "--config.epochs=3",
]
STEPS = 50
# Devices in all, and processes that share them.
LAYOUTS = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (4, 4), (8, 4))


def losses(place: Path, engine: str, devices: int, processes: int, fsdp: int = 1) -> list[float]:
    """The losses of the first 50 steps."""
    name = f"{engine}-{devices}-{processes}-{fsdp}"
    keys = [*KEYS, f"--config.parallel={engine}", f"--config.mesh.fsdp={fsdp}"]
    env = environment(place / "cache", devices // processes)
    starts = together(place / name, keys, env, processes)
    statuses = [start.wait(600) for start in starts]
    assert statuses == [0] * processes, starts[0].log.read_text()[-2000:]
    records = [json.loads(line) for line in lines(place / name)]
    return [r["loss"] for r in records if r["split"] == "train" and r["step"] <= STEPS]


def campaign(layouts=LAYOUTS) -> list[dict]:
    """A row for each: how far the losses of 50 steps are from those of one device under pmap."""
    place, rows, base = Path(tempfile.mkdtemp(prefix="faults-")), [], []
    for engine in ("pmap", "mesh"):
        for devices, processes in layouts:
            for fsdp in (1, 2) if engine == "mesh" and devices > 1 else (1,):
                found = losses(place, engine, devices, processes, fsdp)
                base = base or found
                apart = [abs(a - b) / abs(b) for a, b in zip(found, base, strict=True)]
                row = {"engine": engine, "fsdp": fsdp, "devices": devices, "processes": processes}
                rows.append(row | {"last": apart[-1], "largest": max(apart), "loss": found[-1]})
                print(rows[-1], flush=True)
    return rows
