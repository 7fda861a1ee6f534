"""Benchmark task as data: network, image size, batch size and dtype.

Tasks are sent to worker processes as JSON.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from resflax.errors import UserError, unknown
from resflax.zoo import get_spec

# Up to this size ImageNet networks get the CIFAR stem and ten classes.
MAX_SMALL_IMAGE = 64
# Networks with more blocks than this train on small batches and with `remat`.
VERY_DEEP = 200
MAX_IMAGE, MAX_BATCH = 4096, 65_536
CLIP_FRAMES = 8  # of tasks with three dimensions
DEFAULT_SIZES = {1: 1024, 2: 224, 3: 112}
DTYPES = ("float32", "bfloat16")
DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class Task:
    """A network at one image size, and how it is trained.

    Attributes:
      model: name in `resflax.list_models()`.
      overrides: fields of the spec that differ from the named model's.
      spec: all fields of the spec.
      size: height and width of the images in pixels; length of signals.
      batch: batch size.
      dtype: dtype of the computation; parameters are float32.
      device: "auto", "cpu" or "gpu".
      channels: number of image channels.
      learning_rate: constant and small, so that training on one fixed batch never diverges.
      weight_decay: applied to kernels only, as by the trainer's default.
      seed: seed of weights and images.
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
    def sides(self) -> tuple[int, ...]:
        """Sizes of the spatial axes: length, height and width, or frames, height and width."""
        return (CLIP_FRAMES, self.size, self.size)[3 - self.spec["dimensions"] :]

    @property
    def name(self) -> str:
        """The task in the syntax of `parse_task`, e.g. `resnet50@224:16`."""
        return f"{self.model}@{self.size}:{self.batch}"

    def replace(self, **fields: Any) -> "Task":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **fields)


def default_batch(model: str, spec: dict[str, Any], size: int) -> int:
    """Returns a batch size that fits a laptop's memory."""
    if sum(spec["depths"]) > VERY_DEEP:
        return 8
    if model.startswith("cifar_"):
        return 128
    return 64 if size <= MAX_SMALL_IMAGE else 16


def _parse_int(text: str, description: str, maximum: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= maximum:
        raise UserError(f"{description} is {text!r}: expected an integer from 1 to {maximum}")
    return int(text)


def parse_task(
    text: str,
    *,
    batch: int | None = None,
    needs_peers: bool = True,
    any_dimensions: bool = False,
    **fields: Any,
) -> Task:
    """Parses `name[@size][:batch]`.

    Args:
      text: the model, with optional image size and batch size.
      batch: batch size if `text` has none; None for `default_batch`.
      needs_peers: whether the peers must implement the network.
      any_dimensions: whether networks of signals and clips are allowed.
      **fields: other fields of the task.

    Raises:
      UserError: if the name, size or batch is invalid, or if the peers do not implement the model
        although they must.
    """
    rest, _, batch_text = text.partition(":")
    model, _, size_text = rest.partition("@")
    spec = get_spec(model)
    if spec.dimensions != 2 and not any_dimensions:
        raise UserError(
            f"{model} has dimensions {spec.dimensions}: this benchmark is for images, use step,"
            " memory or compile"
        )
    blocks = ("basic", "bottleneck", "bottleneck_v1")
    if needs_peers and (spec.preact or spec.shortcut not in ("A", "B") or spec.block not in blocks):
        raise UserError(
            f"the peers do not implement {model!r}: expected a post-activation network with"
            " shortcuts A or B and one kind of block"
        )
    size = _parse_int(size_text, f"image size in {text!r}", MAX_IMAGE) if size_text else 0
    size = size or (32 if spec.stem == "cifar" else DEFAULT_SIZES[spec.dimensions])
    overrides: dict[str, Any] = {}
    if spec.stem == "imagenet" and spec.dimensions == 2 and size <= MAX_SMALL_IMAGE:
        overrides = {"stem": "cifar", "num_classes": 10}
    spec = spec.override(**overrides)
    if size < spec.min_image_size:
        raise UserError(
            f"image size {size} is too small for {model}: expected at least {spec.min_image_size}"
        )
    spec_fields = dataclasses.asdict(spec)
    if batch_text:
        batch = _parse_int(batch_text, f"batch size in {text!r}", MAX_BATCH)
    batch = batch or default_batch(model, spec_fields, size)
    return Task(model, overrides, spec_fields, size, batch, **fields)


def check_integer(option: str, value: int | None, maximum: int) -> None:
    """Raises `UserError` if `value` is neither None nor from 1 to `maximum`."""
    if value is not None and not 1 <= value <= maximum:
        raise UserError(f"{option} is {value}: expected an integer from 1 to {maximum}")


def check_choice(kind: str, value: str, known: tuple[str, ...]) -> None:
    """Raises `UserError` if `value` is not in `known`."""
    if value not in known:
        raise unknown(kind, value, known)
