"""Damage to every file of a run's checkpoints, older ones included."""

import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import jax
from models import checkpoint_template
from tqdm import tqdm
from train_process import PIPELINES, TrainProcess, make_env

from resflax.cli.main import silence_libraries
from resflax.run.checkpointer import Checkpointer
from resflax.run.manifest import leaf_checksums, verify_manifest


@dataclass
class Report:
    """Outcome of a campaign, by kind of damage.

    Attributes:
      cases: number of cases.
      reported: number of cases with one warning and the right step restored.
      errors: one line for each other case.
    """

    cases: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


DAMAGES = {"bit flipped": _flip, "truncated": _truncate, "deleted": lambda path, rng: path.unlink()}


def campaign(flips: int = 100, seed: int = 0) -> Report:
    """Flips single bits of all files in turn, truncates each file, and deletes each."""
    folder, report, rng = Path(tempfile.mkdtemp(prefix="faults-")), Report(), random.Random(seed)
    workdir, copy = folder / "run", folder / "copy"
    process = TrainProcess(workdir, PIPELINES["device"], make_env(folder / "cache"))
    assert process.wait() == 0, process.log.read_text()
    template, root = checkpoint_template(workdir), workdir / "checkpoints"
    steps = sorted(int(path.name) for path in root.iterdir())
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    checksums = {step: verify_manifest(root / str(step)) for step in steps}
    cases = [("bit flipped", files[i % len(files)]) for i in range(flips)]
    cases += [(kind, file) for kind in ("truncated", "deleted") for file in files]
    for kind, file in tqdm(cases, "flip"):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(workdir, copy)
        DAMAGES[kind](copy / "checkpoints" / file, rng)
        checkpointer = Checkpointer(copy / "checkpoints", 3)
        restored = checkpointer.restore(template)
        checkpointer.close()
        report.cases[kind] += 1
        damaged = int(file.parts[0])
        latest = max(step for step in steps if step != damaged)
        warnings = checkpointer.warnings
        if (
            len(warnings) == 1
            and f"step {damaged} was skipped" in warnings[0]
            and file.name in warnings[0]
            and restored is not None
            and restored.step == int(restored.tree["state"].step) == latest
            and leaf_checksums(jax.device_get(restored.tree)) == checksums[latest]
        ):
            report.reported[kind] += 1
        else:
            report.errors.append(f"{kind} {file}: {warnings}")
    return report


def main(flips: int) -> bool:
    """Prints the report; returns whether all is well."""
    silence_libraries()
    report = campaign(flips)
    for kind, cases in report.cases.items():
        reported = report.reported[kind]
        print(f"{kind}: {reported} of {cases} reported, the last valid checkpoint restored")
    print(*report.errors, sep="\n", end="", flush=True)
    return not report.errors
