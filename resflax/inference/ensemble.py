"""Predictions of an ensemble: logits of every member, and the mean of their probabilities."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from resflax.errors import UserError
from resflax.inference.graph import Graph
from resflax.inference.predictor import Predictor, make_predictor
from resflax.nn import Spec
from resflax.nn.ensembles import log_mean_probability


def has_same_structure(graph: Graph, other: Graph) -> bool:
    """Returns whether two graphs differ in nothing but the values of their arrays."""
    return (
        [node._replace(arrays={}) for node in graph.nodes]
        == [node._replace(arrays={}) for node in other.nodes]
        and jax.tree.map(np.shape, graph.arrays) == jax.tree.map(np.shape, other.arrays)
        and (graph.output, graph.channels) == (other.output, other.channels)
    )


class EnsemblePredictor:
    """Several networks for the same classes, called on batches of images.

    Attributes:
      predictors: the networks, all with one backend and one dtype.
      is_stacked: whether the networks have one structure, so that `apply` runs them as one, with
        the arrays stacked.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = tuple(predictors)
        first = self.predictors[0].graph
        self.is_stacked = all(has_same_structure(first, p.graph) for p in self.predictors)

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.predictors)

    @property
    def backend(self) -> str:
        """Name in `BACKENDS` of the executor that calls use."""
        return self.predictors[0].backend

    def describe_backend(self) -> str:
        """Returns one line that names the backend and how the members run."""
        line = self.predictors[0].describe_backend()
        how = "as one program" if self.backend == "jax" and self.is_stacked else "one by one"
        return f"{line}; {self.size} members, {how}"

    @cached_property
    def arrays(self) -> Any:
        """Arrays for `apply`: those of `Predictor.arrays` with a leading axis of members.

        A list of the members' arrays if their networks differ.
        """
        arrays = [predictor.arrays for predictor in self.predictors]
        return (
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays) if self.is_stacked else arrays
        )

    def apply_members(
        self, arrays: Any, images: Shaped[Array, "n height width channels"]
    ) -> Float[Array, "members n classes"]:
        """Returns the logits of every member, as a pure function in JAX, whatever the backend."""
        if self.is_stacked:
            return jax.vmap(self.predictors[0].apply, in_axes=(0, None))(arrays, images)
        pairs = zip(self.predictors, arrays, strict=True)
        return jnp.stack([predictor.apply(own, images) for predictor, own in pairs])

    def apply(
        self, arrays: Any, images: Shaped[Array, "n height width channels"]
    ) -> Float[Array, "n classes"]:
        """Returns the log of the mean probabilities, as a pure function in JAX.

        Use it with `arrays` under `jit`, over a mesh, under `vmap` and `jax.export`.
        """
        return log_mean_probability(self.apply_members(arrays, images))

    def members(self, images: Any) -> Float[Array, "members n classes"]:
        """Returns the logits of every member, as float32 (float64 if the dtype is).

        Each shape is compiled once.

        Args:
          images: normalized images `(n, height, width, channels)`; or raw uint8 images, if the
            predictor was made with `mean` and `std`.

        Raises:
          ValueError: if the shape or the dtype does not fit.
        """
        if self.backend == "jax":
            return self._jit_members(self.arrays, images)
        return jnp.stack([predictor(images) for predictor in self.predictors])

    def __call__(self, images: Any) -> Float[Array, "n classes"]:
        """Returns the log of the mean probabilities; see `members` for the arguments."""
        if self.backend == "jax":
            return self._jit_apply(self.arrays, images)
        return _jit_log_mean(self.members(images))

    @cached_property
    def _jit_members(self) -> Any:
        return jax.jit(self.apply_members)

    @cached_property
    def _jit_apply(self) -> Any:
        return jax.jit(self.apply)


_jit_log_mean = jax.jit(log_mean_probability)


def make_ensemble_predictor(
    members: Sequence[tuple[Spec, Any]],
    *,
    dtype: Any = "float32",
    mean: Sequence[Sequence[float]] | None = None,
    std: Sequence[Sequence[float]] | None = None,
    test_pool: tuple[int, int] | None = None,
    backend: str = "auto",
) -> EnsemblePredictor:
    """Returns an ensemble ready for predictions, the batch norm of its networks folded.

    On the JAX backend, members with one structure run as one program, their arrays stacked.

    Args:
      members: spec and variables of each network; the specs can differ, but not in their classes.
      dtype: as in `make_predictor`.
      mean: as in `make_predictor`, of each member: with `mean` and `std`, every member normalizes
        raw uint8 images itself. Floating-point images reach all members as they are.
      std: as in `make_predictor`, of each member.
      test_pool: as in `make_predictor`.
      backend: a name in `BACKENDS`, or "auto" for the first one that can run all members here.

    Raises:
      UserError: as `make_predictor`, or if there is no member or the numbers of classes differ.

    >>> from resflax.zoo import create_model
    >>> model, x = create_model("cifar_resnet8"), jnp.ones((2, 32, 32, 3))
    >>> variables = [model.init(jax.random.key(i), x, train=False) for i in range(2)]
    >>> predict = make_ensemble_predictor([(model.spec, v) for v in variables])
    >>> logits = jnp.stack([model.apply(v, x, train=False) for v in variables])
    >>> bool(jnp.allclose(jnp.exp(predict(x)), jax.nn.softmax(logits).mean(0), atol=1e-5))
    True
    """
    if not members:
        raise UserError("there are no members: expected at least one network")
    classes = sorted({spec.num_classes for spec, _ in members})
    if len(classes) > 1:
        raise UserError(
            f"the members have {' and '.join(map(str, classes))} classes: expected the same number"
        )
    means: Sequence[Any] = [None] * len(members) if mean is None else mean
    stds: Sequence[Any] = [None] * len(members) if std is None else std
    options: dict[str, Any] = {"dtype": dtype, "test_pool": test_pool, "backend": backend}
    predictors = [
        make_predictor(spec, variables, mean=own_mean, std=own_std, **options)
        for (spec, variables), own_mean, own_std in zip(members, means, stds, strict=True)
    ]
    if len({predictor.backend for predictor in predictors}) > 1:
        predictors = [Predictor(p.graph, p.dtype, "jax") for p in predictors]
    return EnsemblePredictor(predictors)
