"""`CaseSet` of PyTorch's ensembles by `torch.func`, or one network after another.

The recipe: `stack_module_state`, then `vmap` of the gradient of a `functional_call`. The optimizer,
SGD with momentum, runs once on the stacked tensors.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from benchmarks.peers.torch_net import Images, TorchModel
from benchmarks.task import Task
from benchmarks.weights import make_weights

SEPARATE = "separate"
Tensors = dict[str, torch.Tensor]


class GlobalMean(nn.Module):
    """Mean over pixels. Under `vmap`, PyTorch's pooling layers run once for each member."""

    def forward(self, x: Images) -> Images:
        return x.mean((2, 3), keepdim=True)


class FunctionalEnsemble:
    """The members' networks as one set of stacked tensors."""

    def __init__(self, task: Task, models: list[TorchModel]) -> None:
        self.net = models[0].net
        self.net.avgpool = GlobalMean()
        self.params, self.buffers = stack_module_state([model.net for model in models])
        self.images = torch.stack([model.images for model in models])
        self.labels = torch.stack([model.labels for model in models])
        # As `TorchModel`: weight decay for kernels only, which have one axis more when stacked.
        decay, rate = {"weight_decay": task.weight_decay}, task.learning_rate
        kernels = [p for p in self.params.values() if p.ndim > 2]
        others = [p for p in self.params.values() if p.ndim <= 2]
        groups: list[dict[str, Any]] = [{"params": kernels, **decay}, {"params": others}]
        self.optimizer = torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)
        self.gradients = vmap(grad_and_value(self._loss))

    def _loss(
        self, params: Tensors, buffers: Tensors, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        return F.cross_entropy(functional_call(self.net, (params, buffers), (images,)), labels)

    def step(self) -> torch.Tensor:
        """Takes one step of every member; returns their losses before it."""
        self.net.train()
        params = {name: p.detach() for name, p in self.params.items()}
        gradients, losses = self.gradients(params, self.buffers, self.images, self.labels)
        for name, parameter in self.params.items():
            parameter.grad = gradients[name]
        self.optimizer.step()
        return losses.detach()


class TorchEnsembles:
    """See `CaseSet`."""

    blocked = 0.0

    def __init__(self, task: Task) -> None:
        self.task, self.images = task, task.batch
        self._calls: dict[str, Callable[[], Any]] = {}
        model = TorchModel(task, compiled=False)
        self.platform, self.library = model.platform, model.library

    def set_dataset(self, dataset: str) -> None:
        """See `CaseSet`; each member has different random images."""

    def _make(self, case: str) -> Callable[[], Any]:
        method, _, members = case.partition(":")
        models = []
        for member in range(int(members)):
            task = self.task.replace(seed=member)
            models.append(TorchModel(task, compiled=False))
            models[-1].load(make_weights(task))
        if method == SEPARATE:
            return lambda: torch.stack([model.step() for model in models])
        return FunctionalEnsemble(self.task, models).step

    def open(self, case: str) -> AbstractContextManager[Callable[[], Any]]:
        """See `CaseSet`. A call is one step of every member."""
        if case not in self._calls:
            if any(c.partition(":")[2] != case.partition(":")[2] for c in self._calls):
                self._calls.clear()  # the states of other numbers of members take memory
            self._calls[case] = self._make(case)
        return contextlib.nullcontext(self._calls[case])

    def wait(self, result: Any) -> None:
        """See `CaseSet`."""
        if result is not None and result.is_cuda:
            torch.cuda.synchronize()

    def losses(self, case: str, steps: int) -> list[float]:
        """Returns the losses of each of the first steps, by step and member."""
        with self.open(case) as call:
            return [float(x) for _ in range(steps) for x in call()]


def make(task: Task) -> TorchEnsembles:
    """Makes the cases of a task."""
    return TorchEnsembles(task)
