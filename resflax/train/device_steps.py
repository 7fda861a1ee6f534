"""Steps that gather their batches from a dataset on the devices, and that take several steps."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resflax.distributed.engines import Step
from resflax.train.metrics import Metrics
from resflax.train.state import TrainState
from resflax.train.step import TrainStep


def flat_dataset(images: Any, labels: Any) -> dict[str, Any]:
    """Returns a dataset for the devices, each image as one row.

    TPUs gather rows in place. Of images with several axes, they copy the whole dataset in every
    step, to another layout.

    Args:
      images: `(examples, ...)`, arrays or `jax.ShapeDtypeStruct`s.
      labels: `(examples,)`.
    """
    rows = (images.shape[0], math.prod(images.shape[1:]))
    if isinstance(images, jax.ShapeDtypeStruct):
        return {"image": jax.ShapeDtypeStruct(rows, images.dtype), "label": labels}
    return {"image": images.reshape(rows), "label": labels}


def gather_batch_in_step(
    step: TrainStep, image_shape: Sequence[int]
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Makes a step `(state, data) -> (state, metrics)` that gathers its batch from a dataset.

    The data have "dataset", see `flat_dataset`; "order", with the example indices of several
    steps as "index", `(steps, batch)`, and other entries of a batch with that shape; and
    "first_step", the first of these steps. Under an `EnsembleEngine` the index may have an axis of
    members.
    """

    def run(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        row = state.step - data["first_step"]
        order = {
            key: lax.dynamic_index_in_dim(rows, row, keepdims=False)
            for key, rows in data["order"].items()
        }
        batch = {key: array[order["index"]] for key, array in data["dataset"].items()}
        batch["image"] = batch["image"].reshape(-1, *image_shape)
        return step(state, batch | order)

    return run


def repeat_step(step: Step, maximum: int) -> Step:
    """Makes a step that takes `data["count"]` steps, at most `maximum`, in a loop on the device.

    Its metrics have a leading axis of `maximum` steps, zeros after the last one, unless that is 1.
    The number of steps is an argument of the program, so that it is compiled once for calls of any
    length, and computes the same bits: a step outside of a loop is compiled differently.
    """
    step = jax.jit(step, inline=True)

    def run(state: TrainState, data: Any) -> tuple[TrainState, Metrics]:
        shapes = jax.eval_shape(step, state, data)[1]  # a trace that the loop uses again
        rows = jax.tree.map(lambda x: jnp.zeros((maximum, *x.shape), x.dtype), shapes)

        def take_step(i: Any, carry: Any) -> Any:
            state, rows = carry
            state, metrics = step(state, data)
            write = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
            return state, jax.tree.map(write, rows, metrics)

        state, rows = lax.fori_loop(0, data["count"], take_step, (state, rows))
        return state, rows if maximum > 1 else jax.tree.map(lambda x: x[0], rows)

    return run
