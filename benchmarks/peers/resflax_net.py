"""resflax through its public API."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.peers.jax_model import JaxModel, unflatten
from benchmarks.task import VERY_DEEP, Task
from benchmarks.weights import Weights
from resflax import create_model
from resflax.nn import stack_params
from resflax.train import TrainState, make_optimizer, make_train_step
from resflax.train.step import TrainStep


class Training(NamedTuple):
    """The trainer's step for the network of a task, without its state."""

    model: Any
    optimizer: Any
    step: TrainStep
    make_state: Callable[[Weights], TrainState]


def make_training(task: Task) -> Training:
    """Makes the network, optimizer and step of a task."""
    # Without `remat`, the activations of 1,202 layers would be stored for the backward pass.
    remat = sum(task.spec["depths"]) > VERY_DEEP
    model = create_model(task.model, dtype=task.dtype, remat=remat, **task.overrides)
    optimizer = make_optimizer("sgd", task.learning_rate, weight_decay=task.weight_decay)
    step = make_train_step(model, optimizer)

    def make_state(weights: Weights) -> TrainState:
        variables: Any = jax.tree.map(jnp.asarray, unflatten(weights))
        variables = stack_params(variables) if model.scan else variables
        # Like `create_state`, but without compiling an initialization that would be discarded.
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(task.seed, jnp.uint32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
        )

    return Training(model, optimizer, step, make_state)


def make(task: Task) -> JaxModel:
    """Makes the network of a task with the trainer's step and optimizer."""
    model, _, step, make_state = make_training(task)

    def train_step(state: TrainState, images: Any, labels: Any) -> tuple[TrainState, Any]:
        state, metrics = step(state, {"image": images, "label": labels})
        return state, metrics["loss"]

    def predict(state: TrainState, images: Any) -> Any:
        return model.apply(state.variables, images, train=False)

    return JaxModel(task, make_state, train_step, predict)
