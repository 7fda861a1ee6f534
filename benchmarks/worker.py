"""One contender in a process of its own: `python -m benchmarks.worker`, driven through its stdin.

Each line in is a JSON object with a key "do"; each line out answers it. Between two lines the
process waits for input, so that it takes nothing from the contender whose turn it is.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_seconds
from benchmarks.peers import CONTENDERS, METERS
from benchmarks.task import Task
from benchmarks.weights import make_weights

CHECKED_STEPS = 2


def peak_resident() -> int | None:
    """The most memory that this process has held, in bytes, since it began or was last reset."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None  # not Linux


def reset_peak() -> bool:
    """Lets `peak_resident` begin anew; whether the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Session:
    """The commands, as methods; each returns what is sent back."""

    run: Any  # a `Run`, or `Parts`

    def start(self, contender: str, task: dict[str, Any], mode: str) -> dict[str, Any]:
        """Makes the contender ready to be loaded; compiles nothing yet."""
        row = (CONTENDERS | METERS)[contender]
        self.task, self.mode = Task(**task), mode
        module = importlib.import_module(f"benchmarks.peers.{row.module}")
        self.run = module.make(self.task, **row.options)
        known = {key: getattr(self.run, key, None) for key in ("dtype", "side")}  # of the GEMM
        return {"platform": self.run.platform, "library": self.run.library, **known}

    def load(self) -> dict[str, Any]:
        """Takes the task's weights."""
        self.run.load(make_weights(self.task))
        return {}

    def check(self) -> dict[str, list[float]]:
        """What is compared before anything is timed: logits and, for a step, losses."""
        self.load()
        answers = {"logits": self.run.host(self.run.forward()).ravel().tolist()}
        if self.mode == "step":
            losses = [self.run.step() for _ in range(CHECKED_STEPS)]
            answers["losses"] = [float(self.run.host(loss)) for loss in losses]
            self.load()
        return answers

    def burst(self, calls: int) -> dict[str, float]:
        """Seconds that `calls` steps or forward passes take together, and how many they were."""
        run, result = self.run, None
        call = run.forward if self.mode == "inference" else run.step
        began = time.perf_counter()
        for _ in range(calls):
            result = call()
            if self.mode == "inference":  # whoever asks waits for the answer
                run.wait(result)
        run.wait(result)
        return {"calls": calls, "seconds": time.perf_counter() - began}

    def warm(self, seconds: float) -> dict[str, float]:
        """Calls until `seconds` are over, at least three times; seconds of the fastest call.

        At least twelve times, if that takes no longer than thirty times `seconds`: glibc's heap
        needs some steps to settle.
        """
        began = time.perf_counter()
        times = [self.burst(1)["seconds"] for _ in range(3)]
        while (took := time.perf_counter() - began) < 30 * seconds and (
            took < seconds or len(times) < 12
        ):
            times.append(self.burst(1)["seconds"])
        return {"fastest": min(times), "first": times[0], "calls": len(times)}

    def folder(self, dataset: str) -> dict[str, int]:
        """Takes a folder of images; how many of them one call of a part takes."""
        self.run.folder(dataset)
        return {"images": self.run.images}

    def compare(self, name: str) -> dict[str, float | None]:
        """How a decoder's pixels differ."""
        return self.run.compare(name)

    def stretch(self, part: str, seconds: float) -> dict[str, float | None]:
        """Calls of a part until `seconds` are over: what they took, of processors as well."""
        run, calls, result = self.run, 0, None
        with run.opened(part) as call:
            blocked, busy, began = run.blocked, cpu_seconds(os.getpid()), time.perf_counter()
            while not calls or time.perf_counter() - began < seconds:
                result = call()
                calls += 1
            run.wait(result)
            took, end = time.perf_counter() - began, cpu_seconds(os.getpid())
            return {
                "calls": calls,
                "seconds": took,
                "cpu_seconds": None if busy is None or end is None else end - busy,
                "blocked_seconds": run.blocked - blocked,
            }

    def compile(self) -> dict[str, float]:
        """Times the making of the training step."""
        self.load()
        return self.run.compile()

    def reset(self) -> dict[str, bool]:
        """From here on peaks are of what comes."""
        return {"reset": reset_peak()}

    def memory(self) -> dict[str, int | None]:
        """Peaks, in bytes."""
        return {"peak_resident_bytes": peak_resident(), "device_bytes": self.run.device_bytes()}


def main() -> None:
    """Answers until stdin closes."""
    # Libraries print; what they print must not look like an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(session, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
