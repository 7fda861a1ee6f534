"""What is measured: a network, an image size, a batch and a dtype, as data.

A worker gets its task as JSON, so that the PyTorch peer need not import JAX to know the network.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from resflax.errors import UserError, unknown
from resflax.zoo import get_spec

SMALL_IMAGE = 64  # up to here an ImageNet network gets the CIFAR stem and ten classes
VERY_DEEP = 200  # blocks
LARGEST_IMAGE, MAX_BATCH = 4096, 65_536
DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class Task:
    """One network at one size, and how it is trained.

    Attributes:
      model: its name in `resflax.list_models()`.
      overrides: fields of its spec that differ from the named one.
      spec: all fields of its spec.
      size: the image's side, in pixels.
      batch: images at once.
      dtype: of the computation; parameters are float32.
      device: "auto", "cpu" or "gpu".
      channels: of the image.
      learning_rate: constant and small, so that a fixed batch can be trained on for ever.
      weight_decay: of kernels only, as the trainer's default.
      seed: of weights and images.
    """

    model: str
    overrides: dict[str, Any]
    spec: dict[str, Any]
    size: int
    batch: int
    dtype: str = "float32"
    device: str = "auto"
    channels: int = 3
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    seed: int = 0

    @property
    def name(self) -> str:
        """As `parse` takes it: `resnet50@224:16`."""
        return f"{self.model}@{self.size}:{self.batch}"

    def replace(self, **fields: Any) -> "Task":
        """This task with some fields changed."""
        return dataclasses.replace(self, **fields)


def default_batch(model: str, spec: dict[str, Any], size: int) -> int:
    """How many images a laptop trains on at once."""
    if sum(spec["depths"]) > VERY_DEEP:
        return 8
    if model.startswith("cifar_"):
        return 128
    return 64 if size <= SMALL_IMAGE else 16


def _number(text: str, what: str, maximum: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= maximum:
        raise UserError(f"{what} is {text!r}: expected an integer from 1 to {maximum}")
    return int(text)


def parse(text: str, *, batch: int | None = None, **fields: Any) -> Task:
    """The task that `name[@size][:batch]` means.

    Raises:
      UserError: on a name, size or batch that cannot be, or a network that the peers do not have.
    """
    rest, _, own_batch = text.partition(":")
    model, _, side = rest.partition("@")
    spec = get_spec(model)
    if spec.preact or spec.shortcut not in ("A", "B"):
        raise UserError(
            f"the peers have no {model!r}: expected post-activation with shortcuts A or B"
        )
    size = _number(side, f"the size of {text!r}", LARGEST_IMAGE) if side else 0
    size = size or (32 if spec.stem == "cifar" else 224)
    overrides: dict[str, Any] = {}
    if spec.stem == "imagenet" and size <= SMALL_IMAGE:
        overrides = {"stem": "cifar", "num_classes": 10}
    spec = spec.override(**overrides)
    if size < spec.min_image_size:
        raise UserError(
            f"images of {size} are too small for {model}: it needs {spec.min_image_size}"
        )
    plain = dataclasses.asdict(spec)
    if own_batch:
        batch = _number(own_batch, f"the batch of {text!r}", MAX_BATCH)
    batch = batch or default_batch(model, plain, size)
    return Task(model, overrides, plain, size, batch, **fields)


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raises `UserError` if a value is not among the known ones."""
    if value not in known:
        raise unknown(what, value, known)
