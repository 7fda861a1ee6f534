"""`CaseSet` of resflax's ensembles: the steps of several members as one program, or one by one.

A case is `METHOD:MEMBERS`: "separate" takes the members' steps one after another, each by the
program of a single run; "auto", "vmap" and "map" are those of `config.ensemble.method`.
"""

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.peers.resflax_net import make_training
from benchmarks.task import Task
from benchmarks.weights import make_batch, make_weights
from resflax.distributed.ensemble_engine import EnsembleEngine
from resflax.kernels.members import choose_method
from resflax.train import create_state, stack_states

SEPARATE = "separate"


class Program(NamedTuple):
    """A compiled step with its states and batches, in lists of one for a program of all members."""

    step: Any
    states: list[Any]
    batches: list[Any]


class Ensembles:
    """See `CaseSet`."""

    blocked = 0.0

    def __init__(self, task: Task) -> None:
        self.task, self.images = task, task.batch
        self.platform, self.library = jax.default_backend(), f"jax {jax.__version__}"
        self.training = make_training(task)
        self._programs: dict[str, Program] = {}

    def set_dataset(self, dataset: str) -> None:
        """See `CaseSet`; each member has different random images."""

    def method(self, case: str) -> str:
        """Returns the method of a case, with the choice of "auto"."""
        method = case.partition(":")[0]
        pixels = self.task.batch * self.task.size**2
        is_auto = method == "auto"
        return choose_method(self.platform, pixels, dtype=self.task.dtype) if is_auto else method

    def open(self, case: str) -> AbstractContextManager[Callable[[], Any]]:
        """See `CaseSet`. A call is one step of every member."""
        if case not in self._programs:
            if any(c.partition(":")[2] != case.partition(":")[2] for c in self._programs):
                self._programs.clear()  # the states of other numbers of members take memory
            self._programs[case] = self._make(case)
        program = self._programs[case]

        def call() -> Any:
            metrics = []
            for i, batch in enumerate(program.batches):
                program.states[i], result = program.step(program.states[i], batch)
                metrics.append(result["loss"])
            return jax.block_until_ready((metrics, program.states))[0]

        return contextlib.nullcontext(call)

    def wait(self, result: Any) -> None:
        """See `CaseSet`."""
        jax.block_until_ready(result)

    def losses(self, case: str, steps: int) -> list[float]:
        """Returns the losses of each of the first steps, by step and member."""
        with self.open(case) as call:
            return [float(x) for _ in range(steps) for x in np.ravel(call())]

    def compile_seconds(self, case: str) -> float:
        """Traces, lowers and compiles the step of a case again; returns the seconds."""
        program = self._make(case)
        jax.clear_caches()
        start = time.perf_counter()
        program.step.lower(program.states[0], program.batches[0]).compile()
        return time.perf_counter() - start

    def _make(self, case: str) -> Program:
        members = int(case.partition(":")[2])
        states = [self._state(member) for member in range(members)]
        batches = [self._batch(member) for member in range(members)]
        if self.method(case) == SEPARATE:
            step = jax.jit(self.training.step, donate_argnums=0)
            return Program(step, jax.device_put(states), jax.device_put(batches))
        engine = EnsembleEngine(jax.local_devices()[:1], members, method=self.method(case))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return Program(
            engine.compile_train(self.training.step),
            [engine.put_state(stack_states(states))],
            [engine.shard_member_batch(stacked)],
        )

    def _state(self, member: int) -> Any:
        task = self.task.replace(seed=member)
        if task.spec["preact"]:
            shape = (task.size, task.size, task.channels)
            return create_state(self.training.model, self.training.optimizer, member, shape)
        return self.training.make_state(make_weights(task))

    def _batch(self, member: int) -> dict[str, np.ndarray]:
        images, labels = make_batch(self.task.replace(seed=member))
        return {"image": images, "label": labels}


def make(task: Task) -> Ensembles:
    """Makes the cases of a task."""
    return Ensembles(task)
