"""Common code of implementations that can only predict."""

from typing import Any

from benchmarks.task import Task
from benchmarks.weights import make_batch
from resflax.errors import UserError


class InferenceModel:
    """`BenchmarkModel` without training; subclasses have `load`, `forward`, `wait`, `to_numpy`."""

    library: str

    def __init__(self, task: Task, platform: str) -> None:
        self.task, self.platform = task, platform
        self.images: Any = make_batch(task)[0]

    def step(self) -> Any:
        """Raises `UserError`."""
        raise UserError("this implementation cannot train: use it with `inference`")

    def compile(self) -> dict[str, float]:
        """Raises `UserError`."""
        return self.step()

    def peak_device_bytes(self) -> int | None:
        """See `BenchmarkModel`."""
        return None
