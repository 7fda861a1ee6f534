"""Predictions and features of image files, batch by batch."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from resflax.data.decode import BadExampleError
from resflax.data.image_files import read_batches
from resflax.evaluate.classifier import Classifier
from resflax.metrics import log_softmax
from resflax.progress import ProgressMeter
from resflax.weights import Pretrained

PROGRESS_SECONDS = 5.0
Outputs = tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n classes"]]


class Prediction(NamedTuple):
    """One of the most probable classes of an image.

    Attributes:
      rank: 1 for the most probable class.
      label: index of the class, from 0.
      name: name of the class.
      probability: its probability, from 0 to 1.
    """

    rank: int
    label: int
    name: str
    probability: float


class OutputBatch(NamedTuple):
    """The outputs of a network for some images.

    Attributes:
      paths: the image files.
      indices: their indices in the list of all files.
      pixels: the images after resize and crop.
      features: pooled features; d is 0 unless they were asked for.
      predictions: the most probable classes of each image; none if the network has no head.
    """

    paths: list[str]
    indices: list[int]
    pixels: UInt8[np.ndarray, "n height width channels"]
    features: Float[np.ndarray, "n d"]
    predictions: list[list[Prediction]]


def compute_outputs(
    pretrained: Pretrained,
    paths: Sequence[str],
    *,
    classes: Sequence[str],
    top: int,
    features: bool,
    batch_size: int,
    num_threads: int,
    on_bad: Callable[[BadExampleError], None],
) -> Iterator[OutputBatch]:
    """Yields the outputs for all readable images in order, and shows the progress on stderr.

    Args:
      pretrained: network and preprocessing.
      paths: image files.
      classes: names of all classes.
      top: number of predictions per image; all classes if there are fewer.
      features: whether to return the features.
      batch_size: largest number of images in a batch.
      num_threads: number of threads that decode images.
      on_bad: called with the error of each unreadable image, which is left out unless it raises.
    """
    network = build_network(pretrained, features=features)
    # Batches of one size, the last one padded, because XLA compiles every size.
    batch_size = math.ceil(len(paths) / math.ceil(len(paths) / batch_size))
    transform, done = pretrained.preprocess, 0
    meter = ProgressMeter(
        len(paths), interval=PROGRESS_SECONDS, delay=PROGRESS_SECONDS, file=sys.stderr
    )
    for indices, pixels in read_batches(
        paths, transform, transform.channels, batch_size, num_threads=num_threads, on_bad=on_bad
    ):
        padding = np.zeros((batch_size - len(pixels), *pixels.shape[1:]), np.uint8)
        outputs = network(np.concatenate([pixels, padding]))
        body, logits = (array[: len(pixels)] for array in outputs)
        probabilities = np.exp(log_softmax(logits)) if logits.size else logits
        predictions = [top_predictions(row, classes, top) for row in probabilities]
        yield OutputBatch([paths[i] for i in indices], indices, pixels, body, predictions)
        meter.update(indices[-1] + 1 - done, f"{indices[-1] + 1:,} images")
        done = indices[-1] + 1
    meter.close()


def build_network(
    pretrained: Pretrained, *, features: bool
) -> Callable[[UInt8[np.ndarray, "n height width channels"]], Outputs]:
    """Returns a function from uint8 images to their features and logits.

    The features have shape (n, 0) unless `features` is set, and the logits if there is no head. If
    both are wanted, the head is applied to the features, so that the body is computed once. As
    those of `Classifier`, the outputs can have more rows than there are images.
    """
    spec, preprocess = pretrained.model.spec, pretrained.preprocess
    classify = Classifier(
        spec,
        pretrained.variables,
        mean=preprocess.mean,
        std=preprocess.std,
        outputs="features" if features else "logits",
    )
    print(classify.describe_backend(), flush=True)

    def run(pixels: UInt8[np.ndarray, "n height width channels"]) -> Outputs:
        outputs = np.asarray(classify(pixels))
        if not features:
            return outputs[:, :0], outputs
        if not spec.num_classes:
            return outputs, outputs[:, :0]
        head = pretrained.variables["params"]["head"]
        return outputs, outputs @ np.asarray(head["kernel"]) + np.asarray(head["bias"])

    return run


def top_predictions(
    probabilities: Float[np.ndarray, " classes"], classes: Sequence[str], count: int
) -> list[Prediction]:
    """Returns the `count` most probable classes of one image, as `compute_outputs` names them.

    >>> top_predictions(np.array([0.2, 0.5, 0.3]), ["a", "b", "c"], 1)
    [Prediction(rank=1, label=1, name='b', probability=0.5)]
    """
    best = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return [
        Prediction(rank, label, classes[label], float(p))
        for rank, (label, p) in enumerate(zip(best, probabilities[best], strict=True), start=1)
    ]
