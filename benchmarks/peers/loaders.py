"""Loaders of a folder of JPEGs: resflax's own, through Grain, and PyTorch's.

Both bring batches of uint8 crops to memory, as Inception crops them. Neither flips: resflax does
so on the device, and it costs PyTorch next to nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.task import Task

ENDLESS = 10**6  # batches


class Loading:
    """Parts are the number of worker processes; a call is the next batch."""

    def __init__(self, task: Task) -> None:
        self.task, self.platform, self.images = task, "cpu", task.batch
        self.blocked = 0.0

    def folder(self, dataset: str) -> None:
        """Takes the folder."""
        self.dataset = dataset

    def batches(self, workers: int) -> Iterator[Any]:
        """Endless batches in random order."""
        raise NotImplementedError

    @contextlib.contextmanager
    def opened(self, part: str) -> Iterator[Callable[[], Any]]:
        """See `Parts`: what the workers made ahead is not counted."""
        workers = int(part)
        batches = self.batches(workers)
        for _ in range(4 * workers + 4):
            next(batches)
        try:
            yield lambda: next(batches)
        finally:
            # PyTorch's iterators have no public way to end their workers.
            for end in ("close", "_shutdown_workers"):
                getattr(batches, end, lambda: None)()

    def wait(self, result: Any) -> None:
        """It is there."""


class Resflax(Loading):
    """As the trainer reads `--config.data.image_size`."""

    def __init__(self, task: Task) -> None:
        from importlib.metadata import version

        super().__init__(task)
        self.library = f"grain {version('grain')}"

    def batches(self, workers: int) -> Iterator[Any]:
        """See `Loading`."""
        from resflax.data import load_dataset, train_batches

        stream = load_dataset(self.dataset, image_size=self.task.size).train
        order = {"seed": self.task.seed, "batch_size": self.task.batch}
        return train_batches(stream, **order, start=0, stop=ENDLESS, num_workers=workers)


class Crops:
    """A dataset of PyTorch's, with torchvision's `ImageFolder` and `RandomResizedCrop` by hand."""

    def __init__(self, root: Path, size: int) -> None:
        classes = sorted(path.name for path in root.iterdir())
        self.files = [(p, classes.index(p.parent.name)) for p in sorted(root.glob("*/*.jpg"))]
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import numpy as np
        import torch
        from PIL import Image

        path, label = self.files[index]
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        image = image.crop(self._box(image.width, image.height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image, copy=True))
        return pixels.permute(2, 0, 1).contiguous(), label  # torchvision's PILToTensor

    @staticmethod
    def _box(width: int, height: int) -> tuple[int, int, int, int]:
        """`RandomResizedCrop.get_params`: 8 to 100 % of the area, a ratio of 3/4 to 4/3."""
        import math

        import torch

        log_ratio = torch.log(torch.tensor((3 / 4, 4 / 3)))
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(0.08, 1.0).item()
            ratio = torch.exp(torch.empty(1).uniform_(*log_ratio.tolist())).item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(0, height - h + 1, (1,)))
                left = int(torch.randint(0, width - w + 1, (1,)))
                return left, top, left + w, top + h
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side


class Torch(Loading):
    """`torch.utils.data.DataLoader`."""

    def __init__(self, task: Task) -> None:
        import torch

        super().__init__(task)
        self.library = f"torch {torch.__version__}"

    def batches(self, workers: int) -> Iterator[Any]:
        """See `Loading`."""
        from torch.utils.data import DataLoader, RandomSampler

        dataset: Any = Crops(Path(self.dataset.removeprefix("folder:")) / "train", self.task.size)
        sampler = RandomSampler(dataset, num_samples=ENDLESS * self.task.batch)
        batch_size = self.task.batch
        return iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers))


def make(task: Task, library: str) -> Loading:
    """The loader of "resflax" or "torch"."""
    return {"resflax": Resflax, "torch": Torch}[library](task)
