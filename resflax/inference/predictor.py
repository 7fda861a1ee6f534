"""Predictions of a network in evaluation mode, through the fastest executor available."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from resflax.errors import UserError, unknown
from resflax.inference.build import build_graph
from resflax.inference.graph import Graph
from resflax.inference.jax_executor import Arrays, apply_graph, check_images
from resflax.inference.onednn_executor import OneDnnExecutor, onednn_reason_against
from resflax.nn import Spec

DTYPES = ("float32", "bfloat16", "float16", "float64")
Run = Callable[[Any], Array]


class Predictor:
    """A network with its weights, called on batches of images.

    Attributes:
      graph: the network's inference form.
      dtype: dtype of convolutions and feature maps.
      backend: name in `BACKENDS` of the executor that calls use.
    """

    def __init__(self, graph: Graph, dtype: Any, backend: str) -> None:
        self.graph, self.dtype, self.backend = graph, jnp.dtype(dtype), backend

    def describe_backend(self) -> str:
        """Returns one line that names the backend, and why those that "auto" prefers cannot run."""
        earlier = list(BACKENDS)[: list(BACKENDS).index(self.backend)]
        reasons = [BACKENDS[name].reason_against(self.graph, self.dtype.name) for name in earlier]
        line = f"inference: {BACKENDS[self.backend].label}"
        known = [reason for reason in reasons if reason]
        return f"{line} ({'; '.join(known)})" if known else line

    @cached_property
    def arrays(self) -> Arrays:
        """Arrays for `apply`, on JAX's default device, convolution kernels in the compute dtype."""
        pooled = {node.name for node in self.graph.nodes if node.op != "conv"}
        return {
            name: {
                key: jnp.asarray(a, None if name in pooled else self.dtype)
                for key, a in arrays.items()
            }
            for name, arrays in self.graph.arrays.items()
        }

    def apply(
        self, arrays: Arrays, images: Shaped[Array, "n height width channels"]
    ) -> Float[Array, "n features"]:
        """Returns the outputs for a batch, as a pure function in JAX, whatever the backend.

        Use it with `arrays` under `jit`, over a mesh, under `vmap` and `jax.export`.
        """
        return apply_graph(self.graph, arrays, images, dtype=self.dtype)

    def __call__(self, images: Any) -> Float[Array, "n features"]:
        """Returns the outputs for a batch, as float32 (float64 if `dtype` is).

        Each shape is compiled once.

        Args:
          images: normalized images `(n, height, width, channels)`; or raw uint8 images, if the
            predictor was made with `mean` and `std`.

        Raises:
          ValueError: if the shape or the dtype does not fit.
        """
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        check_images(self.graph, images)
        return self._run(images)

    @cached_property
    def _run(self) -> Run:
        return BACKENDS[self.backend].make(self)


class Backend(NamedTuple):
    """Row of `BACKENDS`.

    Attributes:
      label: name for people.
      reason_against: `(graph, dtype) -> reason`: why this process cannot run the graph, or None.
      make: `(predictor) -> run`: the function that calls of the predictor run.
    """

    label: str
    reason_against: Callable[[Graph, Any], str | None]
    make: Callable[[Predictor], Run]


def _make_jax(predictor: Predictor) -> Run:
    return partial(jax.jit(predictor.apply), predictor.arrays)


# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {
    "onednn": Backend("oneDNN", onednn_reason_against, lambda p: OneDnnExecutor(p.graph, p.dtype)),
    "jax": Backend("JAX", lambda graph, dtype: None, _make_jax),
}


def make_predictor(
    spec: Spec,
    variables: Any,
    *,
    dtype: Any = "float32",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    outputs: str = "logits",
    test_pool: tuple[int, int] | None = None,
    backend: str = "auto",
) -> Predictor:
    """Returns a network ready for predictions, its batch norm folded.

    Args:
      spec: the architecture.
      variables: its variables, stacked or not.
      dtype: dtype of convolutions and feature maps, or its name: float32, bfloat16, float16 or,
        with JAX's 64-bit mode, float64.
      mean: per-channel mean for pixel values from 0 to 1. With `mean` and `std` the predictor also
        accepts raw uint8 images.
      std: per-channel standard deviation, likewise.
      outputs: "logits", "probabilities" or "features" (pooled, before the head).
      test_pool: height and width of the training images, for test-time pooling of larger ones, see
        `build_graph`.
      backend: a name in `BACKENDS`, or "auto" for the first one that can run the network here.

    Raises:
      UserError: on an unknown dtype or backend, a backend that cannot run the network, or as
        `build_graph` does.

    >>> from resflax.zoo import create_model
    >>> model, x = create_model("cifar_resnet8"), jnp.ones((2, 32, 32, 3))
    >>> variables = model.init(jax.random.key(0), x, train=False)
    >>> predict = make_predictor(model.spec, variables)
    >>> bool(jnp.allclose(predict(x), model.apply(variables, x, train=False), atol=1e-5))
    True
    """
    name = _check_dtype(dtype)
    graph = build_graph(
        spec,
        variables,
        outputs=outputs,
        mean=mean,
        std=std,
        test_pool=test_pool,
        dtype=np.float64 if name == "float64" else np.float32,
    )
    return Predictor(graph, name, choose_backend(graph, name, backend))


def _check_dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("dtype float64 needs 64-bit mode: set JAX_ENABLE_X64=1")
    return name


def choose_backend(graph: Graph, dtype: Any, backend: str) -> str:
    """Returns the name of the backend to use.

    Raises:
      UserError: if `backend` is unknown or cannot run the graph.
    """
    if backend == "auto":
        return next(n for n, row in BACKENDS.items() if not row.reason_against(graph, dtype))
    if backend not in BACKENDS:
        raise unknown("backend", backend, ("auto", *BACKENDS))
    reason = BACKENDS[backend].reason_against(graph, dtype)
    if reason:
        raise UserError(f"backend {backend!r} cannot run this network: {reason}")
    return backend
