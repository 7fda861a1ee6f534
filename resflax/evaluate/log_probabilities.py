"""Log-probabilities of the images of a split by each member, averaged over their views."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from resflax.errors import UserError
from resflax.evaluate.views import Images, Views
from resflax.metrics import log_mean_probability, log_softmax

# Maps uint8 images `(n, h, w, c)` and the indices of their examples in the split to the logits of
# each member, of which the first n rows count. It may return before they are computed.
Classify = Callable[[Images, Int[np.ndarray, " n"]], Any]
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
      log_p: each member's log-probabilities of the classes that count.
      log_sum_exp: logarithm of the sum of the exponentials of these classes' logits, which
        `log_p` has lost; mean over the views.
    """

    indices: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    log_p: Float[np.ndarray, "members n classes"]
    log_sum_exp: Float[np.ndarray, "members n"]


def select_rows(rows: Rows, chosen: Bool[np.ndarray, " n"] | Int[np.ndarray, " m"]) -> Rows:
    """Returns some rows of a batch."""
    return Rows(
        rows.indices[chosen],
        rows.labels[chosen],
        rows.weights[chosen],
        rows.log_p[:, chosen],
        rows.log_sum_exp[:, chosen],
    )


class View(NamedTuple):
    """One view of the images of a batch; see `Rows`."""

    log_p: Float[np.ndarray, "members n classes"]
    log_sum_exp: Float[np.ndarray, "members n"]


def classify_crops(
    classify: Classify,
    batches: Iterator[Any],
    views: Views,
    columns: Int[np.ndarray, " classes"],
) -> Iterator[Rows]:
    """Yields the rows of batches of images of one size.

    Args:
      classify: see `Classify`.
      batches: batches of `eval_batches` with the transform of `views`.
      views: the views of each image.
      columns: the classes that count; probabilities are those among them.
    """
    pending: deque[tuple[Any, list[Any]]] = deque()
    for batch in batches:
        logits = [classify(view, batch["index"]) for view in views.of_batch(batch["image"])]
        pending.append((batch, logits))
        if len(pending) > MAX_PENDING:
            yield average_views(*pending.popleft(), columns)
    while pending:
        yield average_views(*pending.popleft(), columns)


def average_views(batch: Any, logits: list[Any], columns: Int[np.ndarray, " classes"]) -> Rows:
    """Returns the rows of a batch from the members' logits of each of its views."""
    count = len(batch["index"])
    return _mean_over_views(batch, [_fetch(part, count, columns) for part in logits])


def _mean_over_views(batch: Any, views: list[View]) -> Rows:
    log_p = log_mean_probability(np.stack([view.log_p for view in views]))
    log_sum_exp = np.mean([view.log_sum_exp for view in views], 0)
    return Rows(batch["index"], batch["label"], batch["weight"], log_p, log_sum_exp)


def _fetch(logits: Any, count: int, columns: Int[np.ndarray, " classes"]) -> View:
    """Fetches the members' logits and returns log-probabilities among `columns`, in float64."""
    fetched = np.stack([np.asarray(member)[:count] for member in logits])
    if not np.isfinite(fetched).all():
        raise UserError(
            "the model's logits are not finite: expected finite weights and, if it was trained in"
            " float32, --dtype=float32"
        )
    logits = fetched[..., columns].astype(np.float64)
    log_p = log_softmax(logits)
    # Any class gives the same difference.
    return View(log_p, logits[..., 0] - log_p[..., 0])


class _Waiting(NamedTuple):
    """An example some of whose views are not classified yet."""

    batch: Any
    views: list[View]


def classify_whole_images(
    classify: Classify,
    batches: Iterator[Any],
    views: Views,
    columns: Int[np.ndarray, " classes"],
    *,
    interpolation: str,
    batch_size: int,
) -> Iterator[Rows]:
    """Yields the rows of single images at several scales.

    Args:
      classify: see `Classify`.
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
        classify: Classify,
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
        indices = np.concatenate([self.waiting[key].batch["index"] for key, _ in group])
        if len(group) == self.batch_size:
            self.full_shapes.add(shape)
        elif shape in self.full_shapes:  # compiled for full batches
            padding = (0, self.batch_size - len(group))
            images, indices = np.pad(images, [padding, *[(0, 0)] * 3]), np.pad(indices, padding)
        view = _fetch(self.classify(images, indices), len(group), self.columns)
        for row, (key, _) in enumerate(group):
            batch, views = self.waiting[key]
            views.append(View(view.log_p[:, row : row + 1], view.log_sum_exp[:, row : row + 1]))
            if len(views) == self.views.count:
                del self.waiting[key]
                yield _mean_over_views(batch, views)
