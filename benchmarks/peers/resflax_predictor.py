"""resflax's inference form: `make_predictor`, which `evaluate` and `predict` use."""

from typing import Any

import jax
import numpy as np

from benchmarks.peers.inference_model import InferenceModel
from benchmarks.peers.jax_model import unflatten
from benchmarks.task import Task
from benchmarks.weights import Weights
from resflax.inference import make_predictor
from resflax.nn import Spec


class PredictorModel(InferenceModel):
    """A `Predictor`, called on NumPy images on CPUs, and on images on the device elsewhere."""

    def __init__(self, task: Task, backend: str) -> None:
        super().__init__(task, {"cpu": "cpu", "gpu": "gpu"}[jax.default_backend()])
        self.backend, self.library = backend, f"jax {jax.__version__}"
        if self.platform == "gpu":
            self.images: Any = jax.device_put(self.images)

    def load(self, weights: Weights) -> None:
        """See `BenchmarkModel`."""
        self.predictor = make_predictor(
            Spec(**self.task.spec),
            unflatten(weights),
            dtype=self.task.dtype,
            backend=self.backend,
        )

    def forward(self) -> jax.Array:
        """See `BenchmarkModel`."""
        return self.predictor(self.images)

    def wait(self, result: Any) -> None:
        """See `BenchmarkModel`."""
        jax.block_until_ready(result)

    def to_numpy(self, result: jax.Array) -> np.ndarray:
        """See `BenchmarkModel`."""
        return np.asarray(result)


def make(task: Task, backend: str = "auto") -> PredictorModel:
    """Makes the predictor of a task with a backend of `make_predictor`."""
    return PredictorModel(task, backend)
