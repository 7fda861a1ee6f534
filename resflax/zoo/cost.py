"""Parameters and multiply-adds of a network, by stage, from shapes alone."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resflax.nn import ResNet
from resflax.nn.ensembles import GroupedDense
from resflax.nn.scaled_conv import ScaledConv


class PartCost(NamedTuple):
    """Cost of the stem, a stage or the head.

    Attributes:
      name: "stem", "stage1" and so on, or "head".
      blocks: number of residual blocks.
      output_shape: shape of the output for one image, without the batch axis.
      parameters: number of trainable parameters.
      multiply_adds: multiply-adds of convolutions and matrix products, for one image; of all
        members of an efficient ensemble.
    """

    name: str
    blocks: int
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def format_count(number: int) -> str:
    """Returns a number with three digits and a prefix.

    >>> format_count(650), format_count(269722), format_count(25557032), format_count(11513626624)
    ('650', '270 k', '25.6 M', '11.5 G')
    """
    for factor, prefix in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= 0.9995 * factor:
            return f"{number / factor:.3g}{prefix}"
    return str(number)


def part_costs(model: ResNet, image_shape: tuple[int, ...]) -> list[PartCost]:
    """Returns the costs of stem, stages and head for an image `(*space, channels)`.

    Nothing is computed: the model is traced by `jax.eval_shape`. It must have `scan=False`.

    >>> from resflax import create_model
    >>> [stem, *_, head] = part_costs(create_model("cifar_resnet20"), (32, 32, 3))
    >>> stem.multiply_adds == 32 * 32 * 3 * 3 * 3 * 16, head.parameters == 64 * 10 + 10
    (True, True)
    """
    parts: dict[str, PartCost] = {}

    def add(module_name: str, blocks: int = 0, parameters: int = 0, multiply_adds: int = 0) -> str:
        name = module_name.split("_")[0]
        part = parts.get(name, PartCost(name, 0, (), 0, 0))
        parts[name] = part._replace(
            blocks=part.blocks + blocks,
            parameters=part.parameters + parameters,
            multiply_adds=part.multiply_adds + multiply_adds,
        )
        return name

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y, module = call(*args, **kwargs), context.module
        path = module.path
        if not path or context.method_name != "__call__":
            return y
        if len(path) == 1:
            name = add(path[0], blocks=int(path[0].startswith("stage")))
            parts[name] = parts[name]._replace(output_shape=y.shape[1:])
        if isinstance(module, nn.Conv | ScaledConv | nn.Dense | GroupedDense):
            kernel = module.variables["params"]["kernel"]
            add(path[0], multiply_adds=prod(y.shape) * prod(kernel.shape[:-1]))
        return y

    def init() -> Any:
        with nn.intercept_methods(intercept):
            return model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)

    variables = jax.eval_shape(init)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        add(path[0].key, parameters=leaf.size)
    return list(parts.values())
