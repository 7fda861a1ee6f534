"""A PyTorch ResNet in the manner of torchvision: channels_last, eager or under `torch.compile`."""

import contextlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.task import Task
from benchmarks.weights import Weights, make_batch


def conv(cin, cout, kernel, stride=1):
    """A convolution without bias, padded by half its kernel."""
    return nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)


class PadShortcut(nn.Module):
    """Option A: subsample, and pad the channels with zeros on both sides."""

    def __init__(self, extra, stride):
        super().__init__()
        self.before, self.after, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def make_shortcut(shortcut, cin, cout, stride):
    """What stands beside a branch; None for the input itself."""
    if stride == 1 and cin == cout:
        return None
    if shortcut == "A":
        return PadShortcut(cout - cin, stride)
    return nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, cin, width, stride, shortcut, stride_first):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(shortcut, cin, width, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1."""

    expansion = 4

    def __init__(self, cin, width, stride, shortcut, stride_first):
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1, self.bn1 = conv(cin, width, 1, first), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, second), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, width * 4, 1), nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(shortcut, cin, width * 4, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet v1, of a spec's fields."""

    def __init__(self, spec, channels):
        super().__init__()
        block = BasicBlock if spec["block"] == "basic" else Bottleneck
        stride_first, cin = spec["block"] == "bottleneck_v1", spec["stem_width"]
        if spec["stem"] == "imagenet":
            self.conv1 = conv(channels, cin, 7, 2)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1, self.maxpool = conv(channels, cin, 3), nn.Identity()
        self.bn1, self.relu = nn.BatchNorm2d(cin), nn.ReLU(inplace=True)
        stages = []
        for i, (depth, width) in enumerate(zip(spec["depths"], spec["widths"], strict=True)):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(cin, width, stride, spec["shortcut"], stride_first))
                cin = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(cin, spec["num_classes"])

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layers(x))
        return self.fc(torch.flatten(x, 1))


def rename(name: str) -> str:
    """The peer's name: `layers.1.0.conv1.weight` for `params/stage2_block1/conv1/kernel`."""
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


def to_torch(weights: Weights) -> dict[str, torch.Tensor]:
    """A state dict: kernels HWIO -> OIHW, the head's transposed."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        rename(name): torch.from_numpy(np.ascontiguousarray(value.transpose(axes[value.ndim])))
        for name, value in weights.items()
    }


def pick_device(wanted: str) -> torch.device:
    """CUDA where there is one, unless the task says cpu."""
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


class TorchRun:
    """See `Run`."""

    def __init__(self, task: Task, compiled: bool) -> None:
        self.task, self.device = task, pick_device(task.device)
        self.platform = "gpu" if self.device.type == "cuda" else "cpu"
        self.library = f"torch {torch.__version__}"
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX's default
        self.net = ResNet(task.spec, task.channels).to(self.device)
        self.net = self.net.to(memory_format=torch.channels_last)
        self.model = torch.compile(self.net) if compiled else self.net
        images, labels = make_batch(task)
        # NHWC in memory already: the transposed view is channels_last.
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)
        self.labels = torch.from_numpy(labels).long().to(self.device)

    def load(self, weights: Weights) -> None:
        """See `Run`."""
        tensors = to_torch(weights)
        counters = [name for name in self.net.state_dict() if name.endswith("batches_tracked")]
        self.net.load_state_dict({**tensors, **{name: torch.tensor(0) for name in counters}})
        kernels = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim == 1]
        decay = self.task.weight_decay
        groups = [{"params": kernels, "weight_decay": decay}, {"params": others}]
        rate = self.task.learning_rate
        self.optimizer = torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)

    def _autocast(self):
        if self.task.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.task.dtype))

    def step(self):
        """See `Run`."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def forward(self):
        """See `Run`."""
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            return self.model(self.images)

    def wait(self, result) -> None:
        """See `Run`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def host(self, result) -> np.ndarray:
        """See `Run`."""
        return result.float().cpu().numpy()

    def compile(self) -> dict[str, float]:
        """See `Run`: the first step, which compiles if anything does."""
        began = time.perf_counter()
        self.wait(self.step())
        return {"total_seconds": time.perf_counter() - began}

    def device_bytes(self) -> int | None:
        """See `Run`."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


def make(task: Task, compiled: bool = False) -> TorchRun:
    """The PyTorch peer of a task."""
    return TorchRun(task, compiled)
