"""Damage to every file of a real run's checkpoints, those that it would not go on from as well."""

import json
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from starts import KINDS, ROOT, Start, environment
from tqdm import tqdm

from resflax.run.checkpoint import Checkpoints
from resflax.run.manifest import leaf_checksums, verify_manifest
from resflax.train import Trainer, default_config

sys.path.insert(0, str(ROOT))
import train


@dataclass
class Damaged:
    """What came of it, by the kind of damage: how often told and passed over, of how many."""

    told: dict[str, int] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


DAMAGES = {"bit flipped": _flip, "truncated": _truncate, "deleted": lambda path, rng: path.unlink()}


def state_like(folder: Path):
    """What a start would ask a checkpoint for: made from the run's config."""
    config = default_config()
    with config.unlocked():
        config.update(ConfigDict(json.loads((folder / "config.json").read_text())))
    return Trainer(*train.build(config)).init()


def campaign(flips: int = 100, seed: int = 0) -> Damaged:
    """`flips` single bits over all files in turn, each file truncated, each deleted."""
    place, found, rng = Path(tempfile.mkdtemp(prefix="faults-")), Damaged(), random.Random(seed)
    start = Start(place / "run", KINDS["resident"], environment(place / "cache"))
    assert start.wait() == 0, start.log.read_text()
    like = state_like(place / "run")
    steps = sorted(int(p.name) for p in (place / "run" / "checkpoints").iterdir())
    root = place / "run" / "checkpoints"
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    sums = {step: set(verify_manifest(root / str(step)).values()) for step in steps}
    cases = [("bit flipped", files[i % len(files)]) for i in range(flips)]
    cases += [(kind, file) for kind in ("truncated", "deleted") for file in files]
    for kind, file in tqdm(cases, "flip"):
        copy, hurt = place / "copy", int(file.parts[0])
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place / "run", copy)
        DAMAGES[kind](copy / "checkpoints" / file, rng)
        checkpoints = Checkpoints(copy / "checkpoints", 3)
        saved = checkpoints.restore(like)
        checkpoints.close()
        found.tried[kind] = found.tried.get(kind, 0) + 1
        last = max(step for step in steps if step != hurt)
        right = (
            len(checkpoints.warnings) == 1
            and f"step {hurt} is passed over" in checkpoints.warnings[0]
            and int(np.asarray(saved.state.step)) == last
            and set(leaf_checksums(jax.device_get(saved.state)).values()) <= sums[last]
        )
        if right:
            found.told[kind] = found.told.get(kind, 0) + 1
        else:
            found.wrong.append(f"{kind} {file}: {checkpoints.warnings}")
    return found
