"""Plain PyTorch trainer for resflax's recipes, to compare `train.py` with.

    python -m benchmarks.torch_trainer --config=configs/cifar10_resnet.py:20 --workdir=runs/torch

It takes the arguments of `train.py`, for recipes of SGD with padded crops and flips. Initial
weights, pixels and learning rates are those of `train.py`. The order of the examples, the crops and
the arithmetic are PyTorch's.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from absl import logging
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from benchmarks.peers.torch_net import ResNet, to_state_dict
from resflax import create_model, tune_malloc
from resflax.cli.flags import parse
from resflax.cli.main import run_command
from resflax.data import InMemorySplit
from resflax.data.phases import one_phase
from resflax.errors import UserError
from resflax.progress import ProgressMeter
from resflax.run.config_diff import flatten_config
from resflax.run.throughput import Throughput
from resflax.train import Workdir, check_config, default_config
from resflax.train.builders import build_schedule, total_steps
from resflax.train.config import to_json_dict
from resflax.train.dataset import build_dataset, normalize_dataset
from resflax.train.trainer import is_last_of_epochs

DEFAULT_RECIPE = "configs/cifar10_resnet.py"
# The config keys that this trainer supports; the others must have their default values.
SUPPORTED_KEYS = (
    "model",
    "dataset",
    "seed",
    "epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "decay_epochs",
    "decay_rate",
    "momentum",
    "nesterov",
    "weight_decay",
    "decay_mask",
    "label_smoothing",
    "log_every_steps",
    "eval_every_epochs",
    "data.data_dir",
    "data.channels",
    "data.on_bad_example",
    "data.mean",
    "data.std",
    "data.pad_crop",
    "data.flip",
)


def check_supported(config: ConfigDict) -> None:
    """Raises `UserError` if a key that this trainer ignores differs from its default."""
    values, defaults = flatten_config(config), flatten_config(default_config())
    for key, value in values.items():
        if key not in SUPPORTED_KEYS and value != defaults[key]:
            raise UserError(
                f"config.{key} is {value!r}: the PyTorch trainer supports only {defaults[key]!r}"
            )


def make_net(config: ConfigDict, channels: int, size: int, num_classes: int) -> ResNet:
    """Makes the network with the initial weights of `train.py`."""
    model = create_model(config.model, num_classes=num_classes, scan=False)
    example = jax.numpy.zeros((1, size, size, channels))
    variables = jax.jit(lambda key: model.init(key, example, train=False))(
        jax.random.key(config.seed)
    )
    weights = {  # copies, because PyTorch requires writable arrays
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    net = ResNet(dataclasses.asdict(model.spec), channels)
    # Not strict: `num_batches_tracked` is missing.
    net.load_state_dict(to_state_dict(weights), strict=False)
    return net.to(memory_format=torch.channels_last)


def make_optimizer(config: ConfigDict, net: ResNet) -> torch.optim.Optimizer:
    """Makes SGD with weight decay on kernels or on all parameters (`config.decay_mask`)."""
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    other_decay = config.weight_decay if config.decay_mask == "all" else 0.0
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": other_decay},
    ]
    return torch.optim.SGD(
        groups, config.learning_rate, momentum=config.momentum, nesterov=config.nesterov
    )


class TorchSplit:
    """A split as tensors: images uint8 `(n, c, h, w)`, labels int64 `(n,)`.

    Args:
      split: the split.
      mean_std: mean and standard deviation of each channel, of pixels from 0 to 1.
    """

    def __init__(self, split: InMemorySplit, mean_std: Any) -> None:
        self.images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(split.labels).long()
        self.mean, self.std = (torch.tensor(x).view(1, -1, 1, 1) for x in mean_std)

    def normalize(self, images: UInt8[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n c h w"]:
        """Returns the network's input: normalized, channels_last."""
        normalized = (images / 255 - self.mean) / self.std
        return normalized.contiguous(memory_format=torch.channels_last)


def augment(
    images: UInt8[torch.Tensor, "n c h w"], pad_crop: int, flip: bool, rng: torch.Generator
) -> UInt8[torch.Tensor, "n c h w"]:
    """Crops each zero-padded image at random, and flips it with probability 1/2.

    Args:
      images: images.
      pad_crop: padding on each side, in pixels.
      flip: whether to flip horizontally.
      rng: source of randomness.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, [pad_crop] * 4)
    top, left = torch.randint(0, 2 * pad_crop + 1, (2, n, 1), generator=rng)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    flipped = torch.rand(n, 1, generator=rng) < 0.5
    columns = torch.where(flipped & flip, columns.flip(1), columns)
    index = torch.arange(n).view(n, 1, 1)
    cropped = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def batches(
    num_examples: int, batch_size: int, steps: int, rng: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yields the example indices of each step, from consecutive permutations of all examples."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(num_examples, generator=rng)])
        yield order[:batch_size]
        order = order[batch_size:]


def evaluate(net: ResNet, split: TorchSplit, batch_size: int) -> dict[str, float]:
    """Returns the mean loss and the accuracy over every example once."""
    net.eval()
    loss = correct = 0.0
    batched = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    with torch.inference_mode():
        for images, labels in batched:
            logits = net(split.normalize(images))
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
    count = len(split.labels)
    return {"loss": loss / count, "accuracy": correct / count}


class Trainer:
    """A training run of a config; the counterpart of `resflax.train.Trainer`."""

    def __init__(self, config: ConfigDict) -> None:
        dataset = normalize_dataset(build_dataset(config), config)
        size, _, channels = dataset.image_shape
        mean_std = dataset.train.mean_std()
        self.config = config
        self.train = TorchSplit(dataset.train, mean_std)
        self.test = TorchSplit(dataset.test, mean_std)
        self.num_examples = len(dataset.train)
        self.steps = total_steps(config, self.num_examples)
        self.schedule = build_schedule(config, self.num_examples)
        self.net = make_net(config, channels, size, dataset.num_classes)
        self.optimizer = make_optimizer(config, self.net)
        self.rng = torch.Generator().manual_seed(config.seed)

    def train_step(self, step: int, index: torch.Tensor) -> tuple[float, float]:
        """Updates with learning rate `schedule(step)`; returns the previous loss and accuracy."""
        data = self.config.data
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.schedule(step))
        self.net.train()
        images = augment(self.train.images[index], data.pad_crop, data.flip, self.rng)
        logits, labels = self.net(self.train.normalize(images)), self.train.labels[index]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()

    def fit(self, workdir: Workdir, progress: ProgressMeter) -> dict[str, Any]:
        """Trains to the last step; writes and returns the results."""
        start, config = time.monotonic(), self.config
        throughput = Throughput(self.steps)
        window: list[tuple[float, float]] = []
        test: dict[str, float] = {}
        indices = batches(self.num_examples, config.batch_size, self.steps, self.rng)
        eval_examples = self.num_examples * config.eval_every_epochs
        for step, index in enumerate(indices, 1):
            window.append(self.train_step(step - 1, index))
            throughput.step(config.batch_size)
            epoch = round(step * config.batch_size / self.num_examples, 4)
            evaluates = step == self.steps or is_last_of_epochs(
                step, one_phase(config.batch_size), examples=eval_examples
            )
            if evaluates or step % config.log_every_steps == 0:
                loss, accuracy = torch.tensor(window).mean(0).tolist()
                record = {"step": step, "epoch": epoch, "split": "train", "loss": loss}
                record |= {"accuracy": accuracy, "examples_per_second": round(throughput.lap(), 1)}
                workdir.add_record(record)
                text = f"step {step}: loss {loss:.3f}, accuracy {accuracy:.3f}"
                progress.update(len(window), text)
                window.clear()
            if evaluates:
                test = evaluate(self.net, self.test, config.batch_size)
                throughput.pause(len(self.test.labels))
                workdir.add_record({"step": step, "epoch": epoch, "split": "test", **test})
                progress.update(0, f"step {step}: test accuracy {test['accuracy']:.4f}", force=True)
        results = self._results(test, time.monotonic() - start, throughput.overall)
        workdir.write_results(results)
        return results

    def _results(self, test: dict[str, float], seconds: float, speed: float) -> dict[str, Any]:
        return {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "test_examples": len(self.test.labels),
            "train_examples": self.num_examples,
            "steps": self.steps,
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "wall_seconds": round(seconds, 3),
            "examples_per_second": round(speed, 1),
            "torch_version": torch.__version__,
        }


def main() -> None:
    """Trains with the config of the command line."""
    tune_malloc()
    logging.set_verbosity(logging.ERROR)
    command = parse(sys.argv[1:], DEFAULT_RECIPE)
    config = command.config
    check_config(config)
    check_supported(config)
    path = Path(command.workdir or f"runs/torch-{command.name}")
    Workdir.check(path)
    trainer = Trainer(config)
    with (
        Workdir.open(path, to_json_dict(config)) as workdir,
        contextlib.closing(ProgressMeter(trainer.steps, file=sys.stderr)) as progress,
    ):
        results = trainer.fit(workdir, progress)
    print(f"test accuracy {results['test_accuracy']:.4f}; saved in {path}")


if __name__ == "__main__":
    sys.exit(run_command(main))
