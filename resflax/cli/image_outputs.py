"""Predictions and features of images or arrays, batch by batch."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from resflax.cli.predict_inputs import Inputs
from resflax.data import normalize
from resflax.data.decode import BadExampleError
from resflax.evaluate.arrays import ArrayClassifier
from resflax.evaluate.classifier import Classifier, EnsembleClassifier, MemberClassifier
from resflax.metrics import log_mean_probability, log_softmax, mutual_information
from resflax.progress import ProgressMeter
from resflax.weights import Weights
from resflax.weights.array_preprocess import ArrayPreprocess

PROGRESS_SECONDS = 5.0
Outputs = tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "members n classes"]]


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


class ImageUncertainty(NamedTuple):
    """How far the members of an ensemble differ about an image.

    Attributes:
      mutual_information: mutual information of prediction and member, in nats, from 0 to the log of
        the number of members; see `resflax.metrics.mutual_information`.
      agreeing_members: number of members whose most probable class is that of the ensemble.
      members: number of members.
    """

    mutual_information: float
    agreeing_members: int
    members: int


class OutputBatch(NamedTuple):
    """The outputs of a network or an ensemble for some images.

    Attributes:
      paths: names of the images or arrays.
      indices: their indices in the list of all files.
      pixels: the images after resize and crop, or the arrays.
      features: pooled features; d is 0 unless they were asked for.
      predictions: the most probable classes of each image; none if the network has no head.
      uncertainties: of each image; None with one network.
    """

    paths: list[str]
    indices: list[int]
    pixels: Num[np.ndarray, "n *space channels"]
    features: Float[np.ndarray, "n d"]
    predictions: list[list[Prediction]]
    uncertainties: Sequence[ImageUncertainty | None]


def compute_outputs(
    members: Sequence[Weights],
    inputs: Inputs,
    *,
    classes: Sequence[str],
    top: int,
    features: bool,
    batch_size: int,
    on_bad: Callable[[BadExampleError], None],
) -> Iterator[OutputBatch]:
    """Yields the outputs for all readable inputs in order, and shows the progress on stderr.

    Args:
      members: a network, or the members of an ensemble, whose probabilities are averaged.
      inputs: images or arrays.
      classes: names of all classes.
      top: number of predictions per image; all classes if there are fewer.
      features: whether to return the features, of one network only.
      batch_size: largest number of images in a batch.
      on_bad: called with the error of each unreadable image, which is left out unless it raises.
    """
    network = build_network(members, features=features)
    # Batches of one size, the last one padded, because XLA compiles every size.
    total, done = len(inputs.names), 0
    batch_size = math.ceil(total / math.ceil(total / batch_size))
    meter = ProgressMeter(total, interval=PROGRESS_SECONDS, delay=PROGRESS_SECONDS, file=sys.stderr)
    for indices, pixels in inputs.batches(batch_size, on_bad):
        padding = np.zeros((batch_size - len(pixels), *pixels.shape[1:]), pixels.dtype)
        body, logits = network(np.concatenate([pixels, padding]))
        body, logits = body[: len(pixels)], logits[:, : len(pixels)]
        has_head = logits.shape[-1] > 0
        log_p = log_softmax(logits) if has_head else logits
        probabilities = np.exp(log_mean_probability(log_p)) if has_head else logits[0]
        predictions = [top_predictions(row, classes, top) for row in probabilities]
        names = [inputs.names[i] for i in indices]
        yield OutputBatch(names, indices, pixels, body, predictions, uncertainties(log_p))
        meter.update(indices[-1] + 1 - done, f"{indices[-1] + 1:,} {inputs.noun}s")
        done = indices[-1] + 1
    meter.close()


def build_network(
    members: Sequence[Weights], *, features: bool
) -> Callable[[Num[np.ndarray, "n *space channels"]], Outputs]:
    """Returns a function from uint8 images, or arrays, to features and the logits of each member.

    The features have shape (n, 0) unless `features` is set, and the logits have no classes if there
    is no head. If both are wanted, the head is applied to the features, so that the body is
    computed once. As those of `Classifier`, the outputs can have more rows than there are images.
    """
    if features:
        return _build_features(members[0])
    takes_arrays = isinstance(members[0].config.preprocess, ArrayPreprocess)
    classify: MemberClassifier = (
        ArrayClassifier(members) if takes_arrays else EnsembleClassifier.from_weights(members)
    )
    print(classify.describe_backend(), flush=True)

    def run(pixels: Num[np.ndarray, "n *space channels"]) -> Outputs:
        logits = np.asarray(classify.members(pixels, np.arange(len(pixels))))
        return logits[0, :, :0], logits

    return run


def _build_features(
    weights: Weights,
) -> Callable[[Num[np.ndarray, "n *space channels"]], Outputs]:
    """Returns `build_network` of one network, with features."""
    spec, variables, preprocess = weights.config.spec, weights.variables, weights.config.preprocess
    classify = Classifier(
        spec, variables, mean=preprocess.mean, std=preprocess.std, outputs="features"
    )
    print(classify.describe_backend(), flush=True)

    def run(pixels: Num[np.ndarray, "n *space channels"]) -> Outputs:
        if pixels.dtype != np.uint8:  # the classifier takes other numbers normalized
            x = normalize(jnp.asarray(pixels), mean=preprocess.mean, std=preprocess.std)
            pixels = np.asarray(x)
        outputs = np.asarray(classify(pixels))
        if not spec.num_classes:
            return outputs, outputs[None, :, :0]
        head = variables["params"]["head"]
        return outputs, (outputs @ np.asarray(head["kernel"]) + np.asarray(head["bias"]))[None]

    return run


def uncertainties(
    log_p: Float[np.ndarray, "members n classes"],
) -> list[ImageUncertainty | None]:
    """Returns how far the members differ about each image; None for each with one member.

    >>> with np.errstate(divide="ignore"):
    ...     sure = np.log([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> [(round(u.mutual_information, 4), u.agreeing_members) for u in uncertainties(sure)]
    [(0.6931, 1)]
    """
    members, examples, _ = log_p.shape
    if members == 1:
        return [None] * examples
    best = log_mean_probability(log_p).argmax(-1)
    agreeing = (log_p.argmax(-1) == best).sum(0).tolist()
    information = mutual_information(log_p).tolist()
    return [
        ImageUncertainty(mi, count, members)
        for mi, count in zip(information, agreeing, strict=True)
    ]


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
