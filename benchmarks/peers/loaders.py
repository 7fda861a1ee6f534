"""Data loaders for a folder of JPEGs: resflax's, built on Grain, and PyTorch's `DataLoader`.

Both load batches of uint8 Inception crops. Neither flips: resflax flips on the device, and in
PyTorch flips cost almost nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.task import Task

NUM_BATCHES = 10**6  # more than are ever read


class Loader:
    """`CaseSet` of numbers of worker processes. A call loads the next batch."""

    def __init__(self, task: Task) -> None:
        self.task, self.platform, self.images = task, "cpu", task.batch
        self.blocked = 0.0

    def set_dataset(self, dataset: str) -> None:
        """See `CaseSet`."""
        self.dataset = dataset

    def batches(self, num_workers: int) -> Iterator[Any]:
        """Yields batches in random order without end."""
        raise NotImplementedError

    @contextlib.contextmanager
    def open(self, case: str) -> Iterator[Callable[[], Any]]:
        """See `CaseSet`. Reads the prefetched batches first, so that they are not timed."""
        num_workers = int(case)
        batches = self.batches(num_workers)
        for _ in range(4 * num_workers + 4):
            next(batches)
        try:
            yield lambda: next(batches)
        finally:
            # PyTorch has no public function that ends the workers of an iterator.
            for method in ("close", "_shutdown_workers"):
                getattr(batches, method, lambda: None)()

    def wait(self, result: Any) -> None:
        """See `CaseSet`. Calls are synchronous."""


class ResflaxLoader(Loader):
    """The trainer's loader for `--config.data.image_size`."""

    def __init__(self, task: Task) -> None:
        from importlib.metadata import version

        super().__init__(task)
        self.library = f"grain {version('grain')}"

    def batches(self, num_workers: int) -> Iterator[Any]:
        """See `Loader`."""
        from resflax.data import load_dataset, train_batches

        return train_batches(
            load_dataset(self.dataset, image_size=self.task.size).train,
            seed=self.task.seed,
            batch_size=self.task.batch,
            start=0,
            stop=NUM_BATCHES,
            num_workers=num_workers,
        )


class Crops:
    """PyTorch dataset like torchvision's `ImageFolder` with `RandomResizedCrop`."""

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
        """Draws a crop like `RandomResizedCrop.get_params`: area 8 to 100 %, ratio 3/4 to 4/3."""
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


class TorchLoader(Loader):
    """`torch.utils.data.DataLoader`."""

    def __init__(self, task: Task) -> None:
        import torch

        super().__init__(task)
        self.library = f"torch {torch.__version__}"

    def batches(self, num_workers: int) -> Iterator[Any]:
        """See `Loader`."""
        from torch.utils.data import DataLoader, RandomSampler

        dataset: Any = Crops(Path(self.dataset.removeprefix("folder:")) / "train", self.task.size)
        sampler = RandomSampler(dataset, num_samples=NUM_BATCHES * self.task.batch)
        return iter(DataLoader(dataset, self.task.batch, sampler=sampler, num_workers=num_workers))


LOADERS = {"resflax": ResflaxLoader, "torch": TorchLoader}


def make(task: Task, library: str) -> Loader:
    """Makes the loader of "resflax" or "torch"."""
    return LOADERS[library](task)
