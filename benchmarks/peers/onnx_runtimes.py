"""Our ONNX export of a network in onnxruntime and OpenVINO, on the CPU.

onnxruntime has no bfloat16 convolutions on CPUs: it computes in float32 whatever the task's dtype.
"""

from typing import Any

import numpy as np

from benchmarks.peers.inference_model import InferenceModel
from benchmarks.peers.jax_model import unflatten
from benchmarks.task import Task
from benchmarks.weights import Weights
from resflax.export.onnx import to_onnx
from resflax.nn import Spec
from resflax.weights.preprocess import Preprocess
from resflax.weights.pretrained_config import PretrainedConfig


def export(task: Task, weights: Weights) -> bytes:
    """Returns the network of a task as an ONNX model, with its batch norm folded."""
    zeros, ones = (0.0,) * task.channels, (1.0,) * task.channels
    preprocess = Preprocess(size=(task.size, task.size), mean=zeros, std=ones)
    config = PretrainedConfig(Spec(**task.spec), task.channels, preprocess)
    return to_onnx(config, unflatten(weights))


class OnnxModel(InferenceModel):
    """An ONNX model whose calls return logits as NumPy arrays."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, "cpu")
        self.images = np.ascontiguousarray(self.images.transpose(0, 3, 1, 2))

    def wait(self, result: Any) -> None:
        """See `BenchmarkModel`. Calls return when their work is done."""

    def to_numpy(self, result: Any) -> np.ndarray:
        """See `BenchmarkModel`."""
        return np.asarray(result, np.float32)


class OnnxRuntimeModel(OnnxModel):
    """onnxruntime with its default options: all graph optimizations, all cores."""

    def __init__(self, task: Task) -> None:
        import onnxruntime

        super().__init__(task)
        self.library = f"onnxruntime {onnxruntime.__version__}"

    def load(self, weights: Weights) -> None:
        """See `BenchmarkModel`."""
        import onnxruntime

        providers = ["CPUExecutionProvider"]
        model = export(self.task, weights)
        self.session: Any = onnxruntime.InferenceSession(model, providers=providers)

    def forward(self) -> np.ndarray:
        """See `BenchmarkModel`."""
        return self.session.run(["logits"], {"image": self.images})[0]


class OpenVinoModel(OnnxModel):
    """OpenVINO, compiled for the task's batch and dtype."""

    def __init__(self, task: Task) -> None:
        import openvino

        super().__init__(task)
        self.library = f"openvino {openvino.__version__}"

    def load(self, weights: Weights) -> None:
        """See `BenchmarkModel`."""
        import openvino

        core = openvino.Core()
        model = core.read_model(export(self.task, weights))
        model.reshape(list(self.images.shape))
        precision = {"float32": "f32", "bfloat16": "bf16"}[self.task.dtype]
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled: Any = core.compile_model(model, "CPU", options)

    def forward(self) -> np.ndarray:
        """See `BenchmarkModel`."""
        return self.compiled(self.images)[0].copy()


RUNTIMES = {"onnxruntime": OnnxRuntimeModel, "openvino": OpenVinoModel}


def make(task: Task, runtime: str) -> OnnxModel:
    """Makes the network of a task for a runtime, a name in `RUNTIMES`."""
    return RUNTIMES[runtime](task)
