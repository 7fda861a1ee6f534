"""The teacher of a run that distils: a trained network, for the run's images and classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.data.class_names import describe_difference, match_classes, name_tables
from resflax.errors import UserError
from resflax.nn import ResNet
from resflax.nn.patterns import parse_patterns
from resflax.run.manifest import params_sha256
from resflax.train.distill import Distillation, check_maps, feature_names
from resflax.train.pretrained import sort_classes
from resflax.weights.bridge import stack_variables
from resflax.weights.pretrained import adapt_weights
from resflax.weights.readers import Weights, read_weights
from resflax.weights.shapes import module_shapes
from resflax.zoo import create_model

Moments = tuple[tuple[float, ...], tuple[float, ...]]


class Teacher(NamedTuple):
    """A trained network.

    Attributes:
      model: the network.
      variables: NumPy arrays, for `TrainState.teacher`.
      convert: from images normalized for the run to those normalized for the teacher.
      where: `config.distill.teacher`.
      source: one line that says what was read.
    """

    model: ResNet
    variables: Any
    convert: Callable[[Array], Array]
    where: str
    source: str

    def fingerprint(self) -> dict[str, str]:
        """Returns JSON values that tell this teacher from any other."""
        return {"where": self.where, "sha256": params_sha256(self.variables)}

    def distillation(self, config: ConfigDict) -> Distillation:
        """Returns what a step distils."""
        keys = config.distill
        features = parse_patterns(keys.features)

        def teach(variables: Any, images: Array) -> Any:
            images = self.convert(images)
            return self.model.apply(variables, images, train=False, capture=features)

        return Distillation(teach, keys.weight, keys.temperature, features, keys.feature_weight)

    def check_features(
        self, distillation: Distillation, model: nn.Module, image_shape: tuple[int, ...]
    ) -> None:
        """Raises `UserError` if a network does not have the teacher's features; computes nothing.

        Args:
          distillation: what a step distils.
          model: the network that learns.
          image_shape: shape of an image, without the batch axis.
        """
        names = feature_names(model, distillation)
        if not names:
            return
        feature_names(self.model, distillation)  # refuses a teacher with members
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

        def capture(variables: Any, image: Array) -> Any:
            return model.apply(variables, image, train=False, capture=names)[1]

        shapes = module_shapes(model, image_shape)
        try:
            maps = jax.eval_shape(capture, shapes, image)
        except UserError as e:
            raise UserError(f"config.distill.features is {','.join(names)!r}: {e}") from e
        check_maps(maps, jax.eval_shape(distillation.teacher, self.variables, image)[1])


def read_teacher(config: ConfigDict, dataset: Dataset) -> Teacher | None:
    """Reads the teacher of a config; None if it has none.

    Args:
      config: of the run.
      dataset: of the run, with its normalization.

    Raises:
      UserError: if there are no weights, or they do not fit the dataset's classes or images.
    """
    where = config.distill.teacher
    if not where:
        return None
    weights = _fit_classes(read_weights(where), where, dataset)
    spec, (*sides, channels) = weights.config.spec, dataset.image_shape
    if len(sides) != spec.dimensions or min(sides) < spec.min_image_size:
        needs = "x".join([str(spec.min_image_size)] * spec.dimensions)
        raise UserError(
            f"config.distill.teacher={where!r} takes images of {needs} or more, but those of"
            f" {dataset.name} are {'x'.join(map(str, sides))}: use another teacher or image size"
        )
    weights = adapt_weights(weights, channels=channels)
    model = create_model(spec, dtype=config.dtype, scan=config.scan)
    preprocess, moments = weights.config.preprocess, dataset.train.mean_std()
    return Teacher(
        model,
        stack_variables(weights.variables) if model.scan else weights.variables,
        partial(renormalize, old=moments, new=(preprocess.mean, preprocess.std)),
        where,
        weights.source,
    )


def renormalize(images: Array, *, old: Moments, new: Moments) -> Array:
    """Converts images from one mean and standard deviation per channel to others.

    >>> renormalize(jnp.ones((1, 1)), old=((0.5,), (0.5,)), new=((0.0,), (2.0,))).tolist()
    [[0.5]]
    """
    if tuple(map(tuple, old)) == tuple(map(tuple, new)):
        return images
    (old_mean, old_std), (new_mean, new_std) = (
        [jnp.asarray(x, images.dtype).reshape(*[1] * (images.ndim - 1), -1) for x in moments]
        for moments in (old, new)
    )
    return (images * old_std + (old_mean - new_mean)) / new_std


def check_teacher(old: dict[str, str] | None, new: dict[str, str] | None, path: Any) -> None:
    """Raises `UserError` if the teacher of the run in `path` is not the one that it began with."""
    if old and new and old["sha256"] != new["sha256"]:
        raise UserError(
            f"the teacher of the run in {path}, {new['where']}, has changed: restore it, or use"
            " --resume=never for a new run"
        )


def _fit_classes(weights: Weights, where: str, dataset: Dataset) -> Weights:
    """Returns weights with the classes of a dataset, in its order."""
    old, count = weights.config, weights.config.spec.num_classes
    tables = name_tables(old.labels, count, dataset.classes)
    order = match_classes(dataset.classes, tables, count) if count == dataset.num_classes else None
    if order is None:
        difference = describe_difference(dataset.classes, tables)
        raise UserError(
            f"config.distill.teacher={where!r} has {count} classes, and {dataset.name} has"
            f" {dataset.num_classes}{difference}: expected a teacher of the same classes"
        )
    return sort_classes(weights, order)
