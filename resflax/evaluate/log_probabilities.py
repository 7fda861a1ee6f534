"""Log-probabilities of the images of a split, averaged over their views."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resflax.errors import UserError
from resflax.evaluate.views import Images, Views
from resflax.metrics import log_softmax, mean_log_probability

# Batches whose logits may wait on the devices: enough to keep them busy.
MAX_PENDING = 2
# Images of different shapes that may wait for others of their shape.
MAX_WAITING = 1024


class Rows(NamedTuple):
    """Rows of a batch.

    Attributes:
      indices: indices of the examples in the split.
      labels: labels in the dataset.
      weights: 0 for a row that does not count; see `resflax.data.eval_batches`.
      log_p: log-probabilities of the classes that count.
    """

    indices: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    log_p: Float[np.ndarray, "n classes"]


def classify_crops(
    classify: Callable[[Images], Any],
    batches: Iterator[Any],
    views: Views,
    columns: Int[np.ndarray, " classes"],
) -> Iterator[Rows]:
    """Yields the rows of batches of images of one size.

    Args:
      classify: maps uint8 images `(n, h, w, c)` to logits, of which the first n rows count. It may
        return before they are computed.
      batches: batches of `eval_batches` with the transform of `views`.
      views: the views of each image.
      columns: the classes that count; probabilities are those among them.
    """
    pending: deque[tuple[Any, list[Any]]] = deque()
    for batch in batches:
        pending.append((batch, [classify(images) for images in views.of_batch(batch["image"])]))
        if len(pending) > MAX_PENDING:
            yield _average(*pending.popleft(), columns)
    while pending:
        yield _average(*pending.popleft(), columns)


def _average(batch: Any, logits: list[Any], columns: Int[np.ndarray, " classes"]) -> Rows:
    count = len(batch["index"])
    log_p = np.stack([_log_probabilities(part, count, columns) for part in logits])
    return Rows(batch["index"], batch["label"], batch["weight"], mean_log_probability(log_p))


def _log_probabilities(
    logits: Any, count: int, columns: Int[np.ndarray, " classes"]
) -> Float[np.ndarray, "n classes"]:
    """Fetches logits and returns log-probabilities among `columns`, in float64."""
    fetched = np.asarray(logits)[:count]
    if not np.isfinite(fetched).all():
        raise UserError(
            "the model's logits are not finite: expected finite weights and, if it was trained in"
            " float32, --dtype=float32"
        )
    return log_softmax(fetched[:, columns])


class _Waiting(NamedTuple):
    """An example some of whose views are not classified yet."""

    batch: Any
    log_p: list[Float[np.ndarray, " classes"]]


def classify_whole_images(
    classify: Callable[[Images], Any],
    batches: Iterator[Any],
    views: Views,
    columns: Int[np.ndarray, " classes"],
    *,
    interpolation: str,
    batch_size: int,
) -> Iterator[Rows]:
    """Yields the rows of single images at several scales.

    Args:
      classify: see `classify_crops`.
      batches: batches of one whole image, of any size.
      views: the views of each image, with scales.
      columns: see `classify_crops`.
      interpolation: see `EvalTransform`.
      batch_size: images per call of `classify`.
    """
    groups = _ShapeGroups(classify, views, columns, batch_size)
    for key, batch in enumerate(batches):
        yield from groups.add(key, batch, views.of_image(batch["image"][0], interpolation))
    yield from groups.finish()


class _ShapeGroups:
    """Classifies images of equal shape together.

    Each shape is compiled once, or twice if some of its images fill a batch after others did not.
    """

    def __init__(
        self,
        classify: Callable[[Images], Any],
        views: Views,
        columns: Int[np.ndarray, " classes"],
        batch_size: int,
    ) -> None:
        self.classify, self.views = classify, views
        self.columns, self.batch_size = columns, batch_size
        self.waiting: dict[int, _Waiting] = {}
        self.groups: dict[tuple[int, ...], list[tuple[int, Images]]] = {}
        self.full_shapes: set[tuple[int, ...]] = set()

    def add(self, key: int, batch: Any, images: Iterator[Images]) -> Iterator[Rows]:
        """Adds the views of an example; yields the examples that are complete."""
        self.waiting[key] = _Waiting(batch, [])
        for image in images:
            group = self.groups.setdefault(image.shape, [])
            group.append((key, image))
            if len(group) == self.batch_size:
                yield from self._run(image.shape)
        while sum(map(len, self.groups.values())) > MAX_WAITING:
            yield from self._run(next(iter(self.groups)))

    def finish(self) -> Iterator[Rows]:
        """Yields the remaining examples."""
        while self.groups:
            yield from self._run(next(iter(self.groups)))

    def _run(self, shape: tuple[int, ...]) -> Iterator[Rows]:
        group = self.groups.pop(shape)
        images = np.concatenate([image for _, image in group])
        if len(group) == self.batch_size:
            self.full_shapes.add(shape)
        elif shape in self.full_shapes:  # compiled for full batches
            images = np.pad(images, [(0, self.batch_size - len(group)), *[(0, 0)] * 3])
        log_p = _log_probabilities(self.classify(images), len(group), self.columns)
        for (key, _), row in zip(group, log_p, strict=True):
            batch, views_log_p = self.waiting[key]
            views_log_p.append(row)
            if len(views_log_p) == self.views.count:
                del self.waiting[key]
                mean = mean_log_probability(np.stack(views_log_p))[None]
                yield Rows(batch["index"], batch["label"], batch["weight"], mean)
