"""`resflax doctor`: checks that results on this machine are reproducible."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resflax.data import load_dataset
from resflax.distributed.engines import ENGINES, Engine, make_engine
from resflax.errors import UserError
from resflax.nn import ResNet, Spec
from resflax.run.checkpoint import Checkpoint
from resflax.run.checkpointer import Checkpointer
from resflax.train import TrainState, default_config
from resflax.train.builders import (
    build_normalizer,
    build_optimizer,
    build_schedule,
    build_train_step,
)
from resflax.train.input_pipeline import train_iterator
from resflax.train.run import build_state

USAGE = """usage: resflax doctor

Trains a small network on the digits for 20 steps, with both engines, on one device and on all, with
the state replicated and sharded, and checks that the losses agree and that a run resumed from a
checkpoint has the same bits. A CPU is split into eight virtual devices. Takes about a minute.
"""
# Number of virtual devices of a CPU, unless XLA_FLAGS sets it.
VIRTUAL_DEVICES = 8
STEPS = 20
LOSS_RTOL = 1e-4
SPEC = Spec((1, 1, 1), (16, 32, 64), "basic", "cifar", 16, shortcut="A", num_classes=10)


class Check(NamedTuple):
    """A row of the table: what was checked, whether it passed, and the measurement."""

    name: str
    passed: bool
    measurement: str


def make_virtual_devices() -> None:
    """Splits the CPU into several devices; call it before JAX is initialized."""
    # XLA_FLAGS may set the number, or JAX may be initialized already.
    with contextlib.suppress(RuntimeError, ValueError):
        jax.config.update("jax_num_cpu_devices", VIRTUAL_DEVICES)


class Case:
    """Config, data, model, optimizer and initial state that all trials share."""

    def __init__(self) -> None:
        self.config = default_config()
        self.config.batch_size = 8 * len(jax.devices())
        digits = load_dataset("digits")
        self.examples, self.model = digits.train, ResNet(SPEC)
        schedule = build_schedule(self.config, len(digits.train))
        self.optimizer = build_optimizer(self.config, schedule)
        self.initial = build_state(self.config, self.model, self.optimizer, digits.image_shape)


class Trial:
    """A short training run on one engine and number of devices, compiled once."""

    def __init__(self, case: Case, engine: str, devices: int, fsdp: int = 1) -> None:
        self.case, self.initial = case, case.initial
        self.engine: Engine = make_engine(engine, jax.devices()[:devices], fsdp=fsdp)
        step = build_train_step(
            case.config,
            case.model,
            case.optimizer,
            build_normalizer(case.examples),
            axis_name=self.engine.axis_name,
        )
        self.step = self.engine.compile_train(step)

    def run(self, state: TrainState, stop: int) -> tuple[TrainState, list[float]]:
        """Trains from a state to step `stop`; returns the state as NumPy arrays, and the losses."""
        config, start = self.case.config, int(state.step)
        on_devices, losses = self.engine.put_state(state), []
        for batch in train_iterator(self.engine, self.case.examples, config, start, stop):
            on_devices, metrics = self.step(on_devices, batch)
            losses.append(float(self.engine.to_host(metrics)["loss"]))
        return self.engine.to_host(on_devices), losses


def _bytes(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _check_losses(name: str, trial: Trial, expected: list[float]) -> Check:
    _, losses = trial.run(trial.initial, STEPS)
    error = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    return Check(name, bool(error < LOSS_RTOL), f"largest relative loss difference {error:.1e}")


def _check_resume(name: str, trial: Trial) -> Check:
    uninterrupted, _ = trial.run(trial.initial, STEPS)
    half, _ = trial.run(trial.initial, STEPS // 2)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder) / "checkpoints", 2)
        checkpointer.save(Checkpoint(STEPS // 2, {"state": half}, {}), accuracy=0.0)
        checkpointer.close()
        checkpointer = Checkpointer(Path(folder) / "checkpoints", 2)
        saved = checkpointer.restore({"state": trial.initial})
        checkpointer.close()
    resumed, _ = trial.run(saved.tree["state"], STEPS) if saved else (None, [])
    same = _bytes(resumed) == _bytes(uninterrupted)
    return Check(name, same, "bit-identical" if same else "different bits")


def run_checks() -> Iterator[Check]:
    """Yields each check when it is done."""
    count, case = len(jax.devices()), Case()
    trial = Trial(case, "pmap", 1)
    _, losses = trial.run(trial.initial, STEPS)
    learns = bool(np.isfinite(losses).all() and losses[-1] < losses[0])
    yield Check("pmap, 1 device: learns", learns, f"loss {losses[0]:.3f} to {losses[-1]:.3f}")
    yield _check_losses("mesh, 1 device: equals pmap", Trial(case, "mesh", 1), losses)
    for name in ENGINES:
        trial = Trial(case, name, count)
        if count > 1:
            yield _check_losses(f"{name}, {count} devices: equals one", trial, losses)
        yield _check_resume(f"{name}: resumes from a checkpoint", trial)
    if count % 2 == 0:
        name = f"mesh, {count} devices, state sharded over 2: equals one"
        yield _check_losses(name, Trial(case, "mesh", count, 2), losses)


def main(arguments: list[str]) -> None:
    """Prints the devices and a table of checks.

    Raises:
      UserError: if a check fails.
    """
    if arguments:
        if {"-h", "--help"} & set(arguments):
            print(USAGE)
            return
        raise UserError(f"unexpected argument {arguments[0]!r}: doctor takes none")
    make_virtual_devices()
    start = time.monotonic()
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in jax.devices()})
    print(f"{len(jax.devices())} devices: {', '.join(kinds)}; jax {jax.__version__}\n", flush=True)
    failed = 0
    for check in run_checks():
        failed += not check.passed
        status = "pass" if check.passed else "FAIL"
        print(f"{status}  {check.name:52}  {check.measurement}", flush=True)
    print(f"\n{time.monotonic() - start:.0f} seconds")
    if failed:
        raise UserError(f"{failed} checks failed: do not rely on results of this machine")
