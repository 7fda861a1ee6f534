"""Sizes of images and batches that change during a run (`data.size_schedule`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num
from ml_collections import ConfigDict

from resflax.data import InMemorySplit, Split
from resflax.data.phases import Phase, Phases, make_phases
from resflax.train.rule import Combination, Rule

Step = Callable[[Any, Any], Any]
MIN_SIZE, MAX_SIZE = 8, 4096


def _is_row(row: Any) -> bool:
    if not isinstance(row, tuple | list) or len(row) not in (2, 3):
        return False
    first, size, *batch = row
    return (
        not isinstance(first, bool)
        and 0 <= first < 2**31
        and type(size) is int
        and MIN_SIZE <= size <= MAX_SIZE
        and all(type(x) is int and 0 <= x < 2**31 for x in batch)
    )


def _is_schedule(rows: Any) -> bool:
    if not all(map(_is_row, rows)):
        return False
    epochs = [row[0] for row in rows]
    return epochs == sorted({*epochs})


SIZE_SCHEDULE_RULE = Rule(
    "rows of increasing first epochs, the side of the images (8 to 4096) and, optionally, the batch"
    " size, such as ((12, 192), (14, 224, 128))",
    _is_schedule,
)
SIZE_SCHEDULE_COMBINATIONS: tuple[Combination, ...] = (
    (
        lambda c: (
            bool(c.data.size_schedule)
            and bool(c.data.image_size)
            and c.data.size_schedule[0][0] == 0
        ),
        "config.data.size_schedule is {c.data.size_schedule}: expected a first epoch above 0,"
        " before which images have config.data.image_size, {c.data.image_size}",
    ),
    (
        lambda c: c.schedule == "cosine_cycles" and has_batch_sizes(c),
        "config.data.size_schedule is {c.data.size_schedule} with config.schedule='cosine_cycles',"
        " whose cycles are of steps: expected rows without batch sizes",
    ),
    (
        lambda c: c.batch_norm not in ("global", "frozen") and has_batch_sizes(c),
        "config.data.size_schedule is {c.data.size_schedule} with config.batch_norm="
        "{c.batch_norm!r}, whose groups depend on the batch size: expected rows without them",
    ),
)


def batch_sizes(config: ConfigDict) -> set[int]:
    """Returns the batch sizes of a run's steps, also of those after its end."""
    return {size for size, _ in batch_size_sources(config)}


def batch_size_sources(config: ConfigDict) -> list[tuple[int, Sequence[float] | None]]:
    """Returns the batch sizes of a run's steps, each with the row that sets it, or None.

    >>> from resflax.train.config import default_config
    >>> config = default_config()
    >>> config.batch_size, config.data.size_schedule = 64, ((1, 24, 16), (2, 28))
    >>> batch_size_sources(config)
    [(64, None), (16, (1, 24, 16))]
    """
    rows = [(row[2], row) for row in config.data.size_schedule if len(row) > 2 and row[2]]
    return [(config.batch_size, None), *rows]


def has_batch_sizes(config: ConfigDict) -> bool:
    """Returns whether the batch size changes during a run."""
    return len(batch_sizes(config)) > 1


def build_phases(config: ConfigDict, examples: int) -> Phases:
    """Builds the phases of a run on a training split of `examples` examples."""
    return make_phases(
        config.data.size_schedule,
        epochs=config.epochs,
        examples=examples,
        batch_size=config.batch_size,
    )


def describe_phases(phases: Phases, steps: int, split: Split) -> tuple[str, ...]:
    """Returns a line with the sizes of images and batches in the first `steps` steps.

    There is none if all have the batch size of the first phase, and images of the split's size.
    """
    parts = list(phases.between(0, steps))
    if len(parts) < 2 and not any(phase.image_size for phase in parts):
        return ()
    texts = []
    for phase in parts:
        height, width = (phase.image_size,) * 2 if phase.image_size else split.image_shape[:2]
        sides = f"{height}x{width}"
        texts.append(f"{phase.batch_size} of {sides} in steps {phase.start + 1} to {phase.stop}")
    return (f"training images: {', '.join(texts)}",)


def resize_images(images: Num[Array, "n h w c"], size: int) -> Num[Array, "n size size c"]:
    """Resizes images to squares, bilinearly with antialiasing, in their dtype.

    >>> resize_images(jnp.full((2, 32, 32, 3), 7, jnp.uint8), 24).shape
    (2, 24, 24, 3)
    """
    shape = (len(images), size, size, images.shape[-1])
    if images.shape == shape:
        return images
    resized = jax.image.resize(images.astype(jnp.float32), shape, "bilinear")
    if jnp.issubdtype(images.dtype, jnp.integer):
        limits = jnp.iinfo(images.dtype)
        resized = jnp.clip(jnp.round(resized), limits.min, limits.max)
    return resized.astype(images.dtype)


def resize_in_step(step: Step, split: Split, phase: Phase) -> Step:
    """Makes a step that resizes the images of a batch first, if they come from memory.

    Streamed images are read at the size of the phase.
    """
    if not phase.image_size or not isinstance(split, InMemorySplit):
        return step

    def run(state: Any, batch: Any) -> Any:
        return step(state, batch | {"image": resize_images(batch["image"], phase.image_size)})

    return run
