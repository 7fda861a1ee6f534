"""Tables of the benchmarked implementations and the modules that contain them.

Each module has a function `make(task, **options)`; see `benchmarks/peers/protocols.py`.
"""

from typing import Any, NamedTuple


class Implementation(NamedTuple):
    """A row of `IMPLEMENTATIONS` or `AUXILIARY`.

    Attributes:
      module: name of the module in `benchmarks.peers`.
      requires: package that must be installed.
      options: keyword arguments of the module's `make`.
      backend: value of RESFLAX_CONV in the worker process; "" for unset.
      inference: module that replaces `module` in the benchmark "inference"; "" for none.
      trains: whether the implementation can train. If not, it runs in "inference" only.
    """

    module: str
    requires: str
    options: dict[str, Any] = {}  # noqa: RUF012
    backend: str = ""
    inference: str = ""
    trains: bool = True

    def module_for(self, mode: str) -> str:
        """Returns the module to use in a benchmark."""
        return self.inference if mode == "inference" and self.inference else self.module


# Networks (`BenchmarkModel`).
IMPLEMENTATIONS = {
    "resflax": Implementation("resflax_net", "jax", inference="resflax_predictor"),
    "resflax:cpu": Implementation("resflax_net", "jax", backend="cpu"),
    "resflax:onednn": Implementation("resflax_net", "jax", backend="onednn"),
    "resflax:xla": Implementation("resflax_net", "jax", backend="xla"),
    "torch": Implementation("torch_net", "torch"),
    "torch.compile": Implementation("torch_net", "torch", {"compiled": True}),
    "flax": Implementation("flax_net", "flax"),
    "resflax:jax": Implementation("resflax_predictor", "jax", {"backend": "jax"}, trains=False),
    "onnxruntime": Implementation(
        "onnx_runtimes", "onnxruntime", {"runtime": "onnxruntime"}, trains=False
    ),
    "openvino": Implementation("onnx_runtimes", "openvino", {"runtime": "openvino"}, trains=False),
}

# The reference matrix product and copy, and the case sets (`CaseSet`) of the input and ensemble
# benchmarks.
AUXILIARY = {
    "gemm": Implementation("gemm", "numpy"),
    "bandwidth": Implementation("bandwidth", "jax"),
    "decoders": Implementation("decoders", "PIL"),
    "resflax loader": Implementation("loaders", "grain", {"library": "resflax"}),
    "torch loader": Implementation("loaders", "torch", {"library": "torch"}),
    "input paths": Implementation("input_paths", "jax"),
    "ensembles": Implementation("ensembles", "jax"),
    "ensembles:cpu": Implementation("ensembles", "jax", backend="cpu"),
    "torch ensembles": Implementation("torch_ensembles", "torch"),
}

# Cases of the `input` benchmark: one batch reused in every step, and the trainer's input paths.
FIXED_BATCH, ON_DEVICE, FROM_HOST = "fixed batch", "dataset on device", "batches from host"
SMALL_IMAGE_CASES = (FIXED_BATCH, ON_DEVICE, FROM_HOST)
LARGE_IMAGE_CASES = (FIXED_BATCH, f"{FROM_HOST}, 1 worker", f"{FROM_HOST}, 2 workers")
