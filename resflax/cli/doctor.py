"""`python -m resflax doctor`: whether this machine keeps the laws that a run leans on."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.data import load_dataset
from resflax.distributed.engines import Engine, make_engine
from resflax.errors import UserError
from resflax.nn import ResNet, Spec
from resflax.run.checkpoint import Checkpoints, Saved
from resflax.train.builders import (
    build_normalizer,
    build_optimizer,
    build_schedule,
    build_state,
    build_steps,
)
from resflax.train.config import default_config
from resflax.train.input_pipeline import train_iterator
from resflax.train.state import TrainState

USAGE = """usage: python -m resflax doctor

Trains a small network on the digits for some steps: with both engines, on one and on all devices,
with the state whole and spread, and across a save and a restore. On a CPU there are eight virtual
devices. Takes about a minute.
"""
# Of this many devices a CPU is made, unless XLA_FLAGS says otherwise.
VIRTUAL = 8
STEPS = 20
LOSS_RTOL = 1e-4
SPEC = Spec((1, 1, 1), (16, 32, 64), "basic", "cifar", 16, shortcut="A", num_classes=10)


class Check(NamedTuple):
    """A row of the table: what was checked, whether it holds, and the figure behind that."""

    what: str
    right: bool
    found: str


def virtual_devices() -> None:
    """Makes several devices of a CPU; before JAX is asked for any."""
    # XLA_FLAGS may say how many, or they are there already.
    with contextlib.suppress(RuntimeError, ValueError):
        jax.config.update("jax_num_cpu_devices", VIRTUAL)


class Case:
    """The short run as data, made once: what is trained on what, from which state."""

    def __init__(self) -> None:
        self.config = default_config()
        self.config.batch_size = 8 * len(jax.devices())
        digits = load_dataset("digits")
        self.examples, self.model = digits.train, ResNet(SPEC)
        schedule = build_schedule(self.config, len(digits.train))
        self.optimizer = build_optimizer(self.config, schedule)
        self.first = build_state(self.config, self.model, self.optimizer, digits.image_shape)


class Trial:
    """The short run on the engine of a name and so many devices, compiled once."""

    def __init__(self, case: Case, name: str, count: int, fsdp: int = 1) -> None:
        self.case, self.first = case, case.first
        self.engine: Engine = make_engine(name, jax.devices()[:count], fsdp=fsdp)
        step, _ = build_steps(
            case.config,
            case.model,
            case.optimizer,
            build_normalizer(case.examples),
            axis_name=self.engine.axis_name,
        )
        self.step = self.engine.compile_train(step)

    def run(self, state: TrainState, stop: int) -> tuple[TrainState, list[float]]:
        """From a state to a step: the state there, as NumPy arrays, and the losses."""
        config, placed = self.case.config, self.engine.put_state(state)
        mine, start = self.engine.local_slice(config.batch_size), int(state.step)
        losses = []
        for batch in train_iterator(self.case.examples, config, start, stop, mine):
            placed, metrics = self.step(placed, self.engine.shard_batch(batch))
            losses.append(float(self.engine.to_host(metrics)["loss"]))
        return self.engine.to_host(placed), losses


def _bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _same_losses(what: str, patient: Trial, base: list[float]) -> Check:
    _, losses = patient.run(patient.first, STEPS)
    apart = max(abs(a - b) / abs(b) for a, b in zip(losses, base, strict=True))
    return Check(what, bool(apart < LOSS_RTOL), f"losses at most {apart:.1e} apart")


def _saved_and_restored(what: str, patient: Trial) -> Check:
    whole, _ = patient.run(patient.first, STEPS)
    half, _ = patient.run(patient.first, STEPS // 2)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", 2)
        checkpoints.save(Saved(half, {}, {}), accuracy=0.0)
        checkpoints.close()
        checkpoints = Checkpoints(Path(folder) / "checkpoints", 2)
        saved = checkpoints.restore(patient.first)
        checkpoints.close()
    state, _ = patient.run(saved.state, STEPS) if saved else (None, [])
    same = _bits(state) == _bits(whole)
    return Check(what, same, "the same bits" if same else "other bits")


def checks() -> Iterator[Check]:
    """Each check in turn, as it is made."""
    count, case = len(jax.devices()), Case()
    patient = Trial(case, "pmap", 1)
    _, base = patient.run(patient.first, STEPS)
    good = bool(np.isfinite(base).all() and base[-1] < base[0])
    yield Check("pmap, 1 device: it learns", good, f"loss {base[0]:.3f} to {base[-1]:.3f}")
    yield _same_losses("mesh, 1 device, as pmap", Trial(case, "mesh", 1), base)
    for name in ("pmap", "mesh"):
        patient = Trial(case, name, count)
        if count > 1:
            yield _same_losses(f"{name}, {count} devices, as one", patient, base)
        yield _saved_and_restored(f"{name}, saved and restored", patient)
    if count % 2 == 0:
        what = f"mesh, {count} devices, state spread over 2, as one"
        yield _same_losses(what, Trial(case, "mesh", count, 2), base)


def main(arguments: list[str]) -> None:
    """Lists the devices, checks, and prints a table.

    Raises:
      UserError: if a check fails.
    """
    if arguments:
        if {"-h", "--help"} & set(arguments):
            print(USAGE)
            return
        raise UserError(f"unexpected argument {arguments[0]!r}: doctor takes none")
    virtual_devices()
    began = time.monotonic()
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in jax.devices()})
    print(f"{len(jax.devices())} devices: {', '.join(kinds)}; jax {jax.__version__}\n", flush=True)
    failed = 0
    for what, right, found in checks():
        failed += not right
        print(f"{'pass' if right else 'FAIL'}  {what:48}  {found}", flush=True)
    print(f"\n{time.monotonic() - began:.0f} seconds")
    if failed:
        raise UserError(f"{failed} checks failed: results on this machine are not to be trusted")
