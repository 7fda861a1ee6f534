"""resflax itself, by its public API."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers.jax_run import JaxRun, nested
from benchmarks.task import VERY_DEEP, Task
from benchmarks.weights import Weights
from resflax import create_model
from resflax.nn import stack_params
from resflax.train import TrainState, make_optimizer, make_train_step


def make(task: Task) -> JaxRun:
    """The network that the task names, under the trainer's own step and optimiser."""
    remat = sum(task.spec["depths"]) > VERY_DEEP  # or the activations of 1,202 layers are kept
    model = create_model(task.model, dtype=task.dtype, remat=remat, **task.overrides)
    optimizer = make_optimizer("sgd", task.learning_rate, weight_decay=task.weight_decay)
    step = make_train_step(model, optimizer)

    def make_state(weights: Weights) -> TrainState:
        variables: Any = jax.tree.map(jnp.asarray, nested(weights))
        variables = stack_params(variables) if model.scan else variables
        # As `create_state` makes it, without compiling an initialisation that is thrown away.
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(task.seed, jnp.uint32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
        )

    def train_step(state: TrainState, images: Any, labels: Any) -> tuple[TrainState, Any]:
        state, metrics = step(state, {"image": images, "label": labels})
        return state, metrics["loss"]

    def predict(state: TrainState, images: Any) -> Any:
        return model.apply(state.variables, images, train=False)

    return JaxRun(task, make_state, train_step, predict)
