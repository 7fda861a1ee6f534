"""Data of the PyTorch trainer: splits as tensors, crops and flips, order, views of test images."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8

from resflax.data import InMemorySplit


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
    images: UInt8[torch.Tensor, "n c h w"],
    pad_crop: int,
    flipped: Bool[torch.Tensor, " n"],
    rng: torch.Generator,
) -> UInt8[torch.Tensor, "n c h w"]:
    """Crops each zero-padded image at random, and flips some horizontally.

    Args:
      images: images.
      pad_crop: padding on each side, in pixels.
      flipped: which images to flip.
      rng: source of randomness.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, [pad_crop] * 4)
    top, left = torch.randint(0, 2 * pad_crop + 1, (2, n, 1), generator=rng)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
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


def views(images: Float[torch.Tensor, "n c h w"], tta: str) -> list[torch.Tensor]:
    """Returns the views of images that `config.eval_tta` names."""
    moved = [images]
    if tta == "flip_shift":
        padded = F.pad(images, [1] * 4, mode="reflect")
        moved += [padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]]
    return moved if tta == "none" else [*moved, *(x.flip(3) for x in moved)]
