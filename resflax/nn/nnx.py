"""Networks as modules of Flax NNX."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import bridge

COLLECTIONS = ("params", "batch_stats")


class NNXNetwork(bridge.ToNNX):
    """A linen network with its variables, as an NNX module.

    Parameters are `nnx.Param`, batch statistics `nnx.BatchStat`, under the names of the linen
    modules: `network.stage1_block1["conv1"]["kernel"]`.
    """

    def __call__(  # type: ignore[override]  # `train` has no default
        self, *args: Any, train: bool, **kwargs: Any
    ) -> Any:
        """Calls the network; with `train=True`, updates the batch statistics in place."""
        mutable = ["batch_stats"] if train else False
        return super().__call__(*args, train=train, mutable=mutable, **kwargs)


def to_nnx(model: nn.Module, variables: Any) -> NNXNetwork:
    """Returns a linen network with its variables as an NNX module, through `flax.nnx.bridge`.

    The module is trained by `nnx.value_and_grad` and `nnx.Optimizer` like any other. The arrays
    are shared with `variables` until they are updated; `variables` does not change.

    Args:
      model: a network that takes `train=`, such as one of `create_model`.
      variables: its variables; of these, "params" and "batch_stats" are used.

    >>> from resflax.zoo import create_model
    >>> model, images = create_model("cifar_resnet8"), jnp.ones((2, 32, 32, 3))
    >>> network = to_nnx(model, model.init(jax.random.key(0), images, train=False))
    >>> network(images, train=False).shape
    (2, 10)
    """
    network = NNXNetwork(model)
    arrays = {name: variables[name] for name in COLLECTIONS if name in variables}
    arrays = jax.tree.map(jnp.asarray, arrays)
    for name, value in bridge.variables.linen_vars_to_nnx_attrs(arrays).items():
        setattr(network, name, nnx.data(value))
    return network
