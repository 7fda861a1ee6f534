"""Commands of a worker process: load, check and time one implementation."""

import importlib
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_seconds
from benchmarks.peers import AUXILIARY, IMPLEMENTATIONS
from benchmarks.task import Task
from benchmarks.weights import make_weights

CHECKED_STEPS = 2


def peak_resident_bytes() -> int | None:
    """Returns the process's peak resident memory since its start or `reset_peak_resident`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None  # not Linux


def reset_peak_resident() -> bool:
    """Resets the peak resident memory; returns whether the kernel supports it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Session:
    """The worker's commands. Each public method is a command and returns its result."""

    model: Any  # a `BenchmarkModel` or a `CaseSet`

    def start(self, implementation: str, task: dict[str, Any], mode: str) -> dict[str, Any]:
        """Makes the implementation without loading weights or compiling."""
        row = (IMPLEMENTATIONS | AUXILIARY)[implementation]
        self.task, self.mode = Task(**task), mode
        module = importlib.import_module(f"benchmarks.peers.{row.module_for(mode)}")
        self.model = module.make(self.task, **row.options)
        gemm = {key: getattr(self.model, key, None) for key in ("dtype", "side")}
        return {"platform": self.model.platform, "library": self.model.library, **gemm}

    def load(self) -> dict[str, Any]:
        """Loads the task's weights."""
        self.model.load(make_weights(self.task))
        return {}

    def check(self) -> dict[str, list[float]]:
        """Returns the outputs to compare: the logits and, in mode "step", the first losses."""
        self.load()
        outputs = {"logits": self.model.to_numpy(self.model.forward()).ravel().tolist()}
        if self.mode == "step":
            losses = [self.model.step() for _ in range(CHECKED_STEPS)]
            outputs["losses"] = [float(self.model.to_numpy(loss)) for loss in losses]
            self.load()
        return outputs

    def time_calls(self, calls: int) -> dict[str, float]:
        """Times `calls` consecutive training steps or forward passes.

        Steps are awaited together at the end. Forward passes are awaited one by one, as by a user
        who needs each prediction.
        """
        model, result = self.model, None
        call = model.forward if self.mode == "inference" else model.step
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
            if self.mode == "inference":
                model.wait(result)
        model.wait(result)
        return {"calls": calls, "seconds": time.perf_counter() - start}

    def warm_up(self, seconds: float) -> dict[str, float]:
        """Calls for `seconds`, at least 3 times; returns the times of the fastest and first call.

        Makes at least 12 calls if they take no longer than `30 * seconds`, because glibc's heap
        reaches its final size only after several steps.
        """
        start = time.perf_counter()
        times = [self.time_calls(1)["seconds"] for _ in range(3)]
        while (elapsed := time.perf_counter() - start) < 30 * seconds and (
            elapsed < seconds or len(times) < 12
        ):
            times.append(self.time_calls(1)["seconds"])
        return {"fastest": min(times), "first": times[0], "calls": len(times)}

    def set_dataset(self, dataset: str) -> dict[str, int]:
        """Loads a dataset; returns the number of images per call of a case."""
        self.model.set_dataset(dataset)
        return {"images": self.model.images}

    def compare(self, name: str) -> dict[str, float | None]:
        """Compares the pixels of a decoder with resflax's."""
        return self.model.compare(name)

    def time_case(self, case: str, seconds: float) -> dict[str, float | None]:
        """Calls a case for `seconds`; returns calls, wall time, CPU time and time blocked."""
        model, calls, result = self.model, 0, None
        with model.open(case) as call:
            blocked, cpu_start, start = model.blocked, cpu_seconds(os.getpid()), time.perf_counter()
            while not calls or time.perf_counter() - start < seconds:
                result = call()
                calls += 1
            model.wait(result)
            elapsed, cpu_end = time.perf_counter() - start, cpu_seconds(os.getpid())
            return {
                "calls": calls,
                "seconds": elapsed,
                "cpu_seconds": (
                    None if cpu_start is None or cpu_end is None else cpu_end - cpu_start
                ),
                "blocked_seconds": model.blocked - blocked,
            }

    def member_losses(self, case: str, steps: int) -> dict[str, list[float]]:
        """Returns the losses of each of a case's first steps, by step and member."""
        return {"losses": self.model.losses(case, steps)}

    def member_compile(self, case: str) -> dict[str, float]:
        """Compiles the step of a case; returns the seconds."""
        return {"seconds": self.model.compile_seconds(case)}

    def compile(self) -> dict[str, float]:
        """Times the compilation of the training step."""
        self.load()
        return self.model.compile()

    def reset_peak_memory(self) -> dict[str, bool]:
        """Resets the peak reported by `memory`."""
        return {"reset": reset_peak_resident()}

    def memory(self) -> dict[str, int | None]:
        """Returns peak memory in bytes."""
        return {
            "peak_resident_bytes": peak_resident_bytes(),
            "peak_device_bytes": self.model.peak_device_bytes(),
        }
