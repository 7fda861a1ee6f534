"""What a network costs: parameters and multiply-adds, part by part; nothing is computed."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resflax.nn import ResNet


class Part(NamedTuple):
    """A row of `cost`.

    Attributes:
      name: "stem", "stage1" and so on, "head".
      blocks: how many it has.
      shape: of its output for one image, without the batch axis.
      parameters: how many numbers it is trained with.
      multiply_adds: of its convolutions and matrix products, for one image.
    """

    name: str
    blocks: int
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def cost(model: ResNet, image: tuple[int, int, int]) -> list[Part]:
    """The parts of a network (not scanned) for an image of `(height, width, channels)`.

    >>> from resflax import create_model
    >>> [stem, *_, head] = cost(create_model("cifar_resnet20"), (32, 32, 3))
    >>> stem.multiply_adds == 32 * 32 * 3 * 3 * 3 * 16, head.parameters == 64 * 10 + 10
    (True, True)
    """
    parts: dict[str, dict[str, Any]] = {}

    def part_of(path: tuple[str, ...]) -> dict[str, Any]:
        name = path[0].split("_")[0]
        return parts.setdefault(name, {"blocks": set(), "shape": (), "size": 0, "work": 0})

    def watch(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        path = context.module.path
        if path and context.method_name == "__call__":
            part = part_of(path)
            if len(path) == 1:
                part["shape"] = y.shape[1:]
            if len(path) == 1 and path[0].startswith("stage"):
                part["blocks"].add(path[0])
            if isinstance(context.module, nn.Conv | nn.Dense):
                kernel = context.module.variables["params"]["kernel"]
                part["work"] += prod(y.shape) * prod(kernel.shape[:-1])
        return y

    def run() -> Any:
        with nn.intercept_methods(watch):
            return model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False)

    variables = jax.eval_shape(run)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        part_of((path[0].key,))["size"] += leaf.size
    return [
        Part(name, len(part["blocks"]), part["shape"], part["size"], part["work"])
        for name, part in parts.items()
    ]
