"""The state of training: parameters, batch statistics, optimizer state, averaged parameters."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.core import unfreeze
from jaxtyping import Array, Int, UInt32

from resflax.distributed.placement import to_default_device
from resflax.nn import ResNet
from resflax.train.freeze import split_params
from resflax.train.module_checks import check_module
from resflax.train.variables import check_training, check_variables

Tree = TypeVar("Tree")


@struct.dataclass
class TrainState:
    """Everything that the next step depends on, except its batch.

    Attributes:
      step: int32 scalar, number of steps taken.
      seed: uint32 scalar, seed of all randomness inside the step.
      params: parameters, trainable and frozen.
      batch_stats: running mean and variance of each batch norm; {} if there are none.
      opt_state: the optimizer's state, for the trainable parameters.
      collections: the network's other variable collections, by name, which training may change
        too; {} if there are none, as for any `ResNet`.
      ema: average of the parameters, with the same structure; {} for none; see `averaging`.
      reductions: int32 scalar, how often `schedule=plateau` has reduced the learning rate; {} with
        another schedule.
      member: what only members of an ensemble have; {} for a single network. float32 scalars of
        the values that differ by member, by the names of `resflax.train.ensemble.MEMBER_KEYS`;
        "in_row", int32, consecutive updates that were not finite; "diverged_at", int32, the step
        after which the member was frozen, 0 while it trains.
      teacher: variables of the network that a step distils, which do not change; {} for none. They
        are not in checkpoints.
    """

    step: Int[Array, ""]
    seed: UInt32[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = struct.field(default_factory=dict)
    collections: dict[str, Any] = struct.field(default_factory=dict)
    reductions: Any = struct.field(default_factory=dict)
    member: dict[str, Array] = struct.field(default_factory=dict)
    teacher: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """Variables for `model.apply` in training."""
        return {"params": self.params, "batch_stats": self.batch_stats, **self.collections}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """Variables for evaluation: the averaged parameters if there are any."""
        return {**self.variables, "params": self.ema or self.params}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, ...],
    variables: Any = None,
    *,
    ema: bool = False,
    freeze: Sequence[str] = (),
) -> TrainState:
    """Creates the state before the first step, from a seed or from given weights.

    Args:
      model: a linen module called as `model(x, train=...)`.
      optimizer: an optax transformation.
      seed: integer from 0 to 2**32 - 1.
      image_shape: shape of one example, without the batch axis.
      variables: all initial variables of the model; None to initialize them from the seed.
      ema: keep an average of the parameters, which starts at their initial values.
      freeze: patterns of the parameters that the optimizer does not change; see
        `resflax.train.freeze`.

    Raises:
      UserError: if the model cannot be called as described, or training would change which
        variables it has; if the given ones are not its own, or in half precision; if a pattern of
        `freeze` matches no parameter, or all are frozen.
    """
    check_module(model)
    start = seed if isinstance(seed, jax.Array) else np.uint32(seed)
    start, shape = to_default_device(start).astype(jnp.uint32), tuple(image_shape)
    if variables is not None:
        variables = unfreeze(variables)
        check_variables(model, shape, variables)
    check_training(model, shape)
    if variables is None:
        if isinstance(model, ResNet):
            parts = model.spec.parts
            return _init_resnet(model, optimizer, start, shape, ema, tuple(freeze), parts)
        # Modules of the user's own may depend on anything, so that equal ones share no program.
        return jax.jit(lambda seed: _init(model, optimizer, seed, shape, ema, tuple(freeze)))(start)
    return _create(optimizer, ema, tuple(freeze), start, to_default_device(variables))


def _init(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: Array,
    image_shape: tuple[int, ...],
    ema: bool,
    freeze: tuple[str, ...],
) -> TrainState:
    example = jnp.zeros((1, *image_shape), jnp.float32)
    variables = model.init(jax.random.key(seed), example, train=False)
    return _create(optimizer, ema, freeze, seed, variables)


# Jitted with the seed as an argument, so that an ensemble compiles once. The names in a spec may
# stand for other parts than when an equal model was traced.
@partial(jax.jit, static_argnums=(0, 1, 3, 4, 5, 6))
def _init_resnet(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    seed: Array,
    image_shape: tuple[int, ...],
    ema: bool,
    freeze: tuple[str, ...],
    parts: tuple[Any, ...],
) -> TrainState:
    del parts  # of the key only
    return _init(model, optimizer, seed, image_shape, ema, freeze)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _create(
    optimizer: optax.GradientTransformation,
    ema: bool,
    freeze: tuple[str, ...],
    seed: Array,
    variables: Any,
) -> TrainState:
    trainable, _ = split_params(variables["params"], freeze)
    own_fields = ("params", "batch_stats")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=seed,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(trainable),
        # A separate output has separate memory: engines donate each array once.
        ema=variables["params"] if ema else {},
        collections={key: tree for key, tree in variables.items() if key not in own_fields},
    )
