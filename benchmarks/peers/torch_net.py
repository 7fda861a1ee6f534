"""A PyTorch ResNet in the style of torchvision: channels_last, eager or with `torch.compile`.

Signals have no such layout in PyTorch: their arrays are `(n, channels, length)`.
"""

import contextlib
import time
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn

from benchmarks.layers import STEMS, Shape
from benchmarks.task import Task
from benchmarks.weights import Weights, make_batch

Images = Float[torch.Tensor, "n c *space"]


class Layers(NamedTuple):
    """Classes of layers for a number of spatial axes."""

    conv: Any
    norm: Any
    max_pool: Any
    memory_format: torch.memory_format


LAYERS = {
    1: Layers(nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, torch.contiguous_format),
    2: Layers(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, torch.channels_last),
    3: Layers(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, torch.channels_last_3d),
}


ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
# Reductions of all pixels before the head.
POOLINGS: dict[str, Any] = {"avg": torch.mean, "max": torch.amax}


def conv(layers: Layers, cin: int, cout: int, kernel: int | Shape, stride: int | Shape = 1) -> Any:
    """Makes a convolution without bias and with padding `kernel // 2`."""
    padding = kernel // 2 if isinstance(kernel, int) else tuple(size // 2 for size in kernel)
    return layers.conv(cin, cout, kernel, stride, padding=padding, bias=False)


class PadShortcut(nn.Module):
    """Option A: subsamples, and pads the channels with zeros on both sides."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x: Images) -> Images:
        space = x.ndim - 2
        x = x[:, :, *[slice(None, None, self.stride)] * space]
        return F.pad(x, (*[0, 0] * space, self.before, self.after))


def make_shortcut(layers: Layers, shortcut: str, cin: int, cout: int, stride: int) -> Any:
    """Makes the shortcut of a block; None for the identity."""
    if stride == 1 and cin == cout:
        return None
    if shortcut == "A":
        return PadShortcut(cout - cin, stride)
    return nn.Sequential(conv(layers, cin, cout, 1, stride), layers.norm(cout))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, layers: Layers, spec: dict[str, Any], cin: int, width: int, stride: int
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(layers, cin, width, 3, stride), layers.norm(width)
        self.conv2, self.bn2 = conv(layers, width, width, 3), layers.norm(width)
        self.relu = ACTIVATIONS[spec["activation"]](inplace=True)
        self.downsample = make_shortcut(layers, spec["shortcut"], cin, width, stride)

    def forward(self, x: Images) -> Images:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions."""

    expansion = 4

    def __init__(
        self, layers: Layers, spec: dict[str, Any], cin: int, width: int, stride: int
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if spec["block"] == "bottleneck_v1" else (1, stride)
        self.conv1, self.bn1 = conv(layers, cin, width, 1, first), layers.norm(width)
        self.conv2, self.bn2 = conv(layers, width, width, 3, second), layers.norm(width)
        self.conv3, self.bn3 = conv(layers, width, width * 4, 1), layers.norm(width * 4)
        self.relu = ACTIVATIONS[spec["activation"]](inplace=True)
        self.downsample = make_shortcut(layers, spec["shortcut"], cin, width * 4, stride)

    def forward(self, x: Images) -> Images:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet v1 with the fields of a spec."""

    def __init__(self, spec: dict[str, Any], channels: int) -> None:
        super().__init__()
        block: Any = BasicBlock if spec["block"] == "basic" else Bottleneck
        cin = spec["stem_width"]
        layers = LAYERS[spec["dimensions"]]
        kernel, stem_stride, pools = STEMS[spec["stem"]]
        self.conv1 = conv(layers, channels, cin, kernel, stem_stride)
        self.maxpool = layers.max_pool(3, 2, 1) if pools else nn.Identity()
        self.bn1 = layers.norm(cin)
        self.relu = ACTIVATIONS[spec["activation"]](inplace=True)
        stages = []
        for i, (depth, width) in enumerate(zip(spec["depths"], spec["widths"], strict=True)):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(layers, spec, cin, width, stride))
                cin = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.pooling = POOLINGS[spec["pooling"]]
        self.fc = nn.Linear(cin, spec["num_classes"])

    def forward(self, x: Images) -> Float[torch.Tensor, "n classes"]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layers(x)
        return self.fc(self.pooling(x, tuple(range(2, x.ndim))))


def rename(name: str) -> str:
    """Converts resflax's path of an array to this network's.

    >>> rename("params/stage2_block1/conv1/kernel")
    'layers.1.0.conv1.weight'
    """
    _, *path, leaf = name.split("/")
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    leaves |= {"mean": "running_mean", "var": "running_var"}
    module = path[-1]
    names = {"stem_conv": "conv1", "stem_norm": "bn1", "head": "fc"}
    names |= {"Ws": "downsample.0", "Ws_norm": "downsample.1"}
    names |= {f"norm{i}": f"bn{i}" for i in range(1, 4)}
    module = names.get(module, module)
    if len(path) > 1:
        stage, block = path[0].removeprefix("stage").split("_block")
        module = f"layers.{int(stage) - 1}.{int(block) - 1}.{module}"
    return f"{module}.{leaves[leaf]}"


def to_state_dict(weights: Weights) -> dict[str, torch.Tensor]:
    """Converts weights to a torch state dict: kernels from HWIO to OIHW, the head transposed."""

    def to_torch_axes(value: np.ndarray) -> np.ndarray:
        value = np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value
        return np.ascontiguousarray(value)

    return {rename(name): torch.from_numpy(to_torch_axes(value)) for name, value in weights.items()}


def pick_device(device: str) -> torch.device:
    """Returns CUDA if it is available and `device` is not "cpu", else the CPU."""
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


class TorchModel:
    """`BenchmarkModel` for PyTorch."""

    def __init__(self, task: Task, compiled: bool) -> None:
        self.task, self.device = task, pick_device(task.device)
        self.platform = "gpu" if self.device.type == "cuda" else "cpu"
        self.library = f"torch {torch.__version__}"
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as in JAX by default
        self.net: Any = ResNet(task.spec, task.channels).to(self.device)
        self.net = self.net.to(memory_format=LAYERS[task.spec["dimensions"]].memory_format)
        self.model: Any = torch.compile(self.net) if compiled else self.net
        images, labels = make_batch(task)
        # The batch is NHWC in memory, so the transposed view is channels_last.
        self.images = torch.from_numpy(images).movedim(-1, 1).to(self.device)
        self.labels = torch.from_numpy(labels).long().to(self.device)

    def load(self, weights: Weights) -> None:
        """See `BenchmarkModel`."""
        tensors = to_state_dict(weights)
        counters = [name for name in self.net.state_dict() if name.endswith("batches_tracked")]
        self.net.load_state_dict({**tensors, **{name: torch.tensor(0) for name in counters}})
        kernels = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim == 1]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": self.task.weight_decay},
            {"params": others},
        ]
        rate = self.task.learning_rate
        self.optimizer = torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.task.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.task.dtype))

    def step(self) -> torch.Tensor:
        """See `BenchmarkModel`."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def forward(self) -> torch.Tensor:
        """See `BenchmarkModel`."""
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            return self.model(self.images)

    def wait(self, result: Any) -> None:
        """See `BenchmarkModel`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def to_numpy(self, result: torch.Tensor) -> np.ndarray:
        """See `BenchmarkModel`."""
        return result.float().cpu().numpy()

    def compile(self) -> dict[str, float]:
        """See `BenchmarkModel`. Takes the first step, which compiles if `torch.compile` is used."""
        start = time.perf_counter()
        self.wait(self.step())
        return {"total_seconds": time.perf_counter() - start}

    def peak_device_bytes(self) -> int | None:
        """See `BenchmarkModel`."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


def make(task: Task, compiled: bool = False) -> TorchModel:
    """Makes the PyTorch implementation of a task."""
    return TorchModel(task, compiled)
