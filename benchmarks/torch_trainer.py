"""Plain PyTorch trainer for resflax's recipes, to compare `train.py` with.

    python -m benchmarks.torch_trainer --config=configs/cifar10_resnet.py:20 --workdir=runs/torch

It takes the arguments of `train.py`, for recipes of SGD or Muon with padded crops and flips.
Initial weights, pixels and learning rates are those of `train.py`. The order of the examples, the
crops and the arithmetic are PyTorch's.
"""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from absl import logging
from jaxtyping import Bool
from ml_collections import ConfigDict

from benchmarks.layers import STEMS
from benchmarks.peers.torch_data import TorchSplit, augment, batches, views
from benchmarks.peers.torch_muon import Muon
from benchmarks.peers.torch_net import ACTIVATIONS, POOLINGS, ResNet, to_state_dict
from resflax import tune_malloc
from resflax.cli.flags import parse
from resflax.cli.main import run_command
from resflax.data.phases import one_phase
from resflax.errors import UserError
from resflax.nn import unstack_params
from resflax.progress import ProgressMeter
from resflax.run.config_diff import flatten_config
from resflax.run.throughput import Throughput
from resflax.train import Workdir, build, check_config, default_config
from resflax.train.config import to_json_dict
from resflax.train.run import Run
from resflax.train.schedules import SCHEDULES
from resflax.train.trainer import is_last_of_epochs

DEFAULT_RECIPE = "configs/cifar10_resnet.py"
# The config keys that this trainer supports; the others must have their default values.
SUPPORTED_KEYS = (
    "model",
    "whiten_stem",
    "dataset",
    "seed",
    "optimizer",
    "epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "polynomial_power",
    "decay_epochs",
    "decay_rate",
    "momentum",
    "nesterov",
    "weight_decay",
    "decay_mask",
    "label_smoothing",
    "log_every_steps",
    "eval_every_epochs",
    "eval_tta",
    "steps_per_call",
    "checkpoint_every_minutes",
    "data.data_dir",
    "data.channels",
    "data.on_bad_example",
    "data.mean",
    "data.std",
    "data.pad_crop",
    "data.flip",
    "data.alternating_flip",
    "spec.depths",
    "spec.widths",
    "spec.stem",
    "spec.stem_width",
    "spec.shortcut",
    "spec.activation",
    "spec.pooling",
)


# Their values, where only some are supported; None is the model's own.
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "optimizer": ("sgd", "muon"),
    "schedule": tuple(name for name in SCHEDULES if name != "plateau"),
    "spec.stem": (None, *STEMS),
    "spec.shortcut": (None, "A", "B"),
    "spec.activation": (None, *ACTIVATIONS),
    "spec.pooling": (None, *POOLINGS),
}


def check_supported(config: ConfigDict) -> None:
    """Raises `UserError` if a key differs from its default in a way that this trainer ignores."""
    values, defaults = flatten_config(config), flatten_config(default_config())
    supported = {key: (default,) for key, default in defaults.items() if key not in SUPPORTED_KEYS}
    supported |= SUPPORTED_VALUES
    if config.optimizer == "muon":
        supported["nesterov"] = (True,)
    for key, allowed in supported.items():
        if values[key] not in allowed:
            names = " or ".join(map(repr, allowed))
            raise UserError(
                f"config.{key} is {values[key]!r}: the PyTorch trainer supports only {names}"
            )


def make_net(run: Run) -> ResNet:
    """Makes the network with the initial weights of `train.py`; a stem that whitens is frozen."""
    spec: Any = run.model.spec
    variables = unstack_params(run.init().variables)
    weights = {  # copies, because PyTorch requires writable arrays
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    net = ResNet(dataclasses.asdict(spec), run.dataset.image_shape[-1])
    # Not strict: `num_batches_tracked` is missing.
    net.load_state_dict(to_state_dict(weights), strict=False)
    net.conv1.requires_grad_(not run.config.whiten_stem)
    return net.to(memory_format=torch.channels_last)


def make_optimizers(config: ConfigDict, net: ResNet) -> list[torch.optim.Optimizer]:
    """Makes SGD, or Muon for the kernels of blocks and AdamW for the others.

    Weight decay is that of kernels or of all parameters (`config.decay_mask`).
    """
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    is_muon = config.optimizer == "muon"
    muon = [p for name, p in named if is_muon and name.startswith("layers") and p.ndim > 1]
    kernels = [p for name, p in named if p.ndim > 1 and not any(p is q for q in muon)]
    others = [p for _, p in named if p.ndim == 1]
    other_decay = config.weight_decay if config.decay_mask == "all" else 0.0
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": other_decay},
    ]
    rate = config.learning_rate
    if is_muon:
        blocks = Muon(muon, rate, config.momentum, config.weight_decay)
        return [blocks, torch.optim.AdamW(groups, rate)]
    return [torch.optim.SGD(groups, rate, momentum=config.momentum, nesterov=config.nesterov)]


def evaluate(
    net: ResNet, split: TorchSplit, batch_size: int, tta: str = "none"
) -> dict[str, float]:
    """Returns the mean loss and the accuracy over every example once."""
    net.eval()
    loss = correct = 0.0
    batched = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    with torch.inference_mode():
        for images, labels in batched:
            inputs = [
                x.contiguous(memory_format=torch.channels_last)
                for x in views(split.normalize(images), tta)
            ]
            log_p = torch.stack([F.log_softmax(net(x), 1) for x in inputs]).logsumexp(0)
            loss += F.nll_loss(log_p - math.log(len(inputs)), labels, reduction="sum").item()
            correct += (log_p.argmax(1) == labels).sum().item()
    count = len(split.labels)
    return {"loss": loss / count, "accuracy": correct / count}


class Trainer:
    """A training run of a config; the counterpart of `resflax.train.Trainer`."""

    def __init__(self, config: ConfigDict) -> None:
        run = build(config)
        dataset = run.dataset
        mean_std = dataset.train.mean_std()
        self.config = config
        self.train = TorchSplit(dataset.train, mean_std)
        self.test = TorchSplit(dataset.test, mean_std)
        self.num_examples = len(dataset.train)
        self.steps, (self.schedule,) = run.steps, run.schedules
        self.net = make_net(run)
        self.optimizers = make_optimizers(config, self.net)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.first_flips = torch.rand(self.num_examples, generator=self.rng) < 0.5

    def flips(self, step: int, index: torch.Tensor) -> Bool[torch.Tensor, " n"]:
        """Returns which images of a batch are mirrored: random ones, in other epochs, or none."""
        data = self.config.data
        if data.alternating_flip:
            is_odd = step * self.config.batch_size // self.num_examples % 2 == 1
            return self.first_flips[index] ^ is_odd
        return (torch.rand(len(index), generator=self.rng) < 0.5) & data.flip

    def train_step(self, step: int, index: torch.Tensor) -> tuple[float, float]:
        """Updates with learning rate `schedule(step)`; returns the previous loss and accuracy."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = float(self.schedule(step))
        self.net.train()
        flipped, padding = self.flips(step, index), self.config.data.pad_crop
        images = augment(self.train.images[index], padding, flipped, self.rng)
        logits, labels = self.net(self.train.normalize(images)), self.train.labels[index]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
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
                test = evaluate(self.net, self.test, config.batch_size, config.eval_tta)
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
