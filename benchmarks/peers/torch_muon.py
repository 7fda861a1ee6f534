"""Muon in PyTorch, written from its description, as the peer of `--config.optimizer=muon`."""

from collections.abc import Iterable
from typing import Any

import torch

# Coefficients and steps of the Newton-Schulz iteration (Jordan et al. 2024,
# https://kellerjordan.github.io/posts/muon).
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5
RMS = 0.2  # of an update, as AdamW's: Liu et al. 2025 (arXiv:2502.16982), equation 4


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Returns a matrix with singular values near 1 and the singular vectors of another one.

    Args:
      matrix: float `(rows, columns)`.
    """
    x = matrix / (matrix.norm() + 1e-8)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(STEPS):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum and orthogonal updates, for kernels of two or more axes.

    The axes of a kernel but the first, its outputs, are one axis of a matrix.

    Args:
      params: kernels.
      lr: learning rate.
      momentum: decay of the average of gradients.
      weight_decay: decoupled weight decay.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates the parameters once."""
        del closure
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                state = self.state[p]
                average = state.setdefault("average", torch.zeros_like(p))
                steps = state["steps"] = state.get("steps", 0) + 1
                average.lerp_(p.grad, 1 - momentum)
                # Corrected for the average's start at 0, as Nesterov's momentum in NAdam.
                ahead = average * (momentum / (1 - momentum ** (steps + 1)))
                direction = ahead + p.grad * ((1 - momentum) / (1 - momentum**steps))
                direction = direction.reshape(len(p), -1)
                update = orthogonalize(direction).reshape(p.shape)
                scale = RMS * max(direction.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)
