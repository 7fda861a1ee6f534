"""What a run carries from step to step."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

Array = jax.Array
COLLECTIONS = ("params", "batch_stats")


@struct.dataclass
class TrainState:
    """Everything that the next step depends on, besides its batch.

    Attributes:
      step: int32 scalar, the number of steps taken.
      seed: uint32 scalar, of all randomness inside the step.
      params: the trainable parameters.
      batch_stats: running mean and variance of each batch norm; {} if there are none.
      opt_state: the optimiser's.
      ema: an average of the parameters, of their structure, shapes and dtypes; {} for none.
    """

    step: Array
    seed: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes to train."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What evaluation takes: the average of the parameters where there is one."""
        return {"params": self.ema or self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, ...],
    variables: Any = None,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step: a function of the seed alone, or of given weights.

    Args:
      model: a linen module called as `model(x, train=...)`.
      optimizer: whose state is initialised with the parameters.
      seed: from 0 to 2**32 - 1.
      image_shape: of one example, without the batch axis.
      variables: "params" and "batch_stats" to begin with, as `resflax.weights` gives them.
      ema: keep an average of the parameters, which begins as these.
    """
    start = jnp.asarray(seed, jnp.uint32)
    if variables is None:
        return _init(model, optimizer, start, tuple(image_shape), ema)
    return _begin(optimizer, ema, start, {key: variables.get(key, {}) for key in COLLECTIONS})


# One compilation serves every seed of an ensemble.
@partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _init(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: Array,
    image_shape: tuple[int, ...],
    ema: bool,
) -> TrainState:
    example = jnp.zeros((1, *image_shape), jnp.float32)
    return _begin(optimizer, ema, seed, model.init(jax.random.key(seed), example, train=False))


@partial(jax.jit, static_argnums=(0, 1))
def _begin(
    optimizer: optax.GradientTransformation, ema: bool, seed: Array, variables: Any
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=seed,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        # An output of its own, in memory of its own: the engines give up each array once.
        ema=variables["params"] if ema else {},
    )
