"""A plain PyTorch trainer of resflax's recipes: what `train.py` is held against.

    python -m benchmarks.torch_trainer --config=configs/cifar10_resnet20.py --workdir=runs/torch

takes what `train.py` takes, for recipes of SGD with padded crops and flips. The network begins with
the weights that `train.py` begins with, reads the same pixels and follows the same learning rate;
the order of the examples, the crops and the network's arithmetic are PyTorch's own.
"""

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
from ml_collections import ConfigDict

from benchmarks.peers.torch_net import ResNet, to_torch
from resflax import create_model
from resflax.cli.flags import parse, report
from resflax.data import InMemorySplit
from resflax.errors import UserError
from resflax.run.throughput import Meter
from resflax.train import Progress, Workdir, check_config, default_config
from resflax.train.builders import build_dataset, build_schedule, total_steps
from resflax.train.config import flat_keys

DEFAULT = Path(__file__).parents[1] / "configs" / "cifar10_resnet20.py"
# The keys of a config that this trainer heeds; the others must be as they are by default.
HEEDED = (
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


def check_heeded(config: ConfigDict) -> None:
    """Raises `UserError` on a key that would be ignored."""
    found, default = flat_keys(config), flat_keys(default_config())
    for key, value in found.items():
        if key not in HEEDED and value != default[key]:
            raise UserError(
                f"config.{key} is {value!r}: the PyTorch trainer has only {default[key]!r}"
            )


def make_net(config: ConfigDict, channels: int, size: int, num_classes: int) -> ResNet:
    """The network, with the weights that `train.py` begins with."""
    model = create_model(config.model, num_classes=num_classes, scan=False)
    example = jax.numpy.zeros((1, size, size, channels))
    variables = jax.jit(lambda key: model.init(key, example, train=False))(
        jax.random.key(config.seed)
    )
    weights = {  # copies: PyTorch wants to be able to write
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    net = ResNet(dataclasses.asdict(model.spec), channels)
    net.load_state_dict(to_torch(weights), strict=False)  # but for the counts of batches
    return net.to(memory_format=torch.channels_last)


def make_optimizer(config: ConfigDict, net: ResNet) -> torch.optim.Optimizer:
    """SGD; weight decay acts on kernels or on all, as the recipe says."""
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    rest = config.weight_decay if config.decay_mask == "all" else 0.0
    return torch.optim.SGD(
        [
            {"params": kernels, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": rest},
        ],
        config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


class Pixels:
    """A split in PyTorch's hands: images uint8 `(n, c, h, w)`, labels int64 `(n,)`."""

    def __init__(self, split: InMemorySplit) -> None:
        self.images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(split.labels).long()

    def normalize_as(self, moments: Any) -> "Pixels":
        """Takes mean and deviation of each channel, of 0 to 1."""
        self.mean, self.std = (torch.tensor(m).view(1, -1, 1, 1) for m in moments)
        return self

    def to_input(self, images: torch.Tensor) -> torch.Tensor:
        """What the network sees of images uint8."""
        images = (images / 255 - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)


def augment(images: torch.Tensor, padding: int, flip: bool, rng: torch.Generator) -> torch.Tensor:
    """Each image cut at random out of itself with zeros around, and mirrored or not."""
    n, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=rng)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    mirrored = torch.rand(n, 1, generator=rng) < 0.5
    columns = torch.where(mirrored & flip, columns.flip(1), columns)
    number = torch.arange(n).view(n, 1, 1)
    cut = padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)


def batches(count: int, size: int, steps: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    """The examples of each step: one permutation after the other, cut into whole batches."""
    row = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(row) < size:
            row = torch.cat([row, torch.randperm(count, generator=rng)])
        yield row[:size]
        row = row[size:]


@torch.inference_mode()
def evaluate(net: ResNet, pixels: Pixels, size: int) -> dict[str, float]:
    """Mean loss and accuracy over every example once."""
    net.eval()
    loss = correct = 0.0
    for images, labels in zip(pixels.images.split(size), pixels.labels.split(size), strict=True):
        logits = net(pixels.to_input(images))
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
    count = len(pixels.labels)
    return {"loss": loss / count, "accuracy": correct / count}


class Trainer:
    """One run; see `resflax.train.Trainer`."""

    def __init__(self, config: ConfigDict) -> None:
        dataset = build_dataset(config)
        size, _, channels = dataset.image_shape
        moments = dataset.train.mean_std()
        self.config = config
        self.train, self.test = (
            Pixels(split).normalize_as(moments) for split in (dataset.train, dataset.test)
        )
        self.examples = len(dataset.train)
        self.steps = total_steps(config, self.examples)
        self.schedule = build_schedule(config, self.examples)
        self.net = make_net(config, channels, size, dataset.num_classes)
        self.optimizer = make_optimizer(config, self.net)
        self.rng = torch.Generator().manual_seed(config.seed)

    def step(self, number: int, index: torch.Tensor) -> tuple[float, float]:
        """One update, of learning rate `schedule(number)`; loss and accuracy before it."""
        data = self.config.data
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.schedule(number))
        self.net.train()
        images = augment(self.train.images[index], data.pad_crop, data.flip, self.rng)
        logits, labels = self.net(self.train.to_input(images)), self.train.labels[index]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()

    def fit(self, run: Workdir, progress: Progress) -> dict[str, Any]:
        """Trains to the end; writes records and results."""
        began, config, meter = time.monotonic(), self.config, Meter(self.steps)
        window, test, size = [], {}, config.batch_size
        rows = batches(self.examples, size, self.steps, self.rng)
        for step, index in enumerate(rows, 1):
            window.append(self.step(step - 1, index))
            meter.step(size)
            epoch = step * size / self.examples
            each = self.examples * config.eval_every_epochs
            evaluates = step == self.steps or step * size // each > (step - 1) * size // each
            if evaluates or step % config.log_every_steps == 0:
                loss, accuracy = torch.tensor(window).mean(0).tolist()
                record = {"step": step, "epoch": round(epoch, 4), "split": "train", "loss": loss}
                record |= {"accuracy": accuracy, "examples_per_second": round(meter.lap(), 1)}
                run.record(record)
                progress.train(record, meter.left(step))
                window.clear()
            if evaluates:
                test = evaluate(self.net, self.test, size)
                meter.pause()
                record = {"step": step, "epoch": round(epoch, 4), "split": "test", **test}
                run.record(record)
                progress.test(record, meter.left(step))
        progress.close()
        results = {
            "test_accuracy": test["accuracy"],
            "test_loss": test["loss"],
            "test_examples": len(self.test.labels),
            "train_examples": self.examples,
            "steps": self.steps,
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "wall_seconds": round(time.monotonic() - began, 3),
            "examples_per_second": round(meter.overall, 1),
            "torch_version": torch.__version__,
        }
        run.finish(results)
        return results


def main() -> None:
    """Parse, build, fit."""
    logging.set_verbosity(logging.ERROR)
    command = parse(DEFAULT)
    config = command.config
    check_config(config)
    check_heeded(config)
    path = Path(command.workdir or f"runs/torch-{command.name}")
    Workdir.check(path)
    trainer = Trainer(config)
    results = trainer.fit(Workdir.open(path, config), Progress(trainer.steps))
    print(f"test accuracy {results['test_accuracy']:.4f}; saved in {path}")


if __name__ == "__main__":
    sys.exit(report(main))
