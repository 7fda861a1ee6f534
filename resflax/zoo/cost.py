"""Parameters and multiply-adds of a network, by stage, from shapes alone."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resflax.nn import ResNet, Spec
from resflax.nn.ensembles import GroupedDense
from resflax.nn.scaled_conv import ScaledConv

DEFAULT_SIZES = {1: 1024, 2: 224, 3: 112}  # by number of dimensions
CLIP_FRAMES = 16


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

    Nothing is computed: the model is traced by `jax.eval_shape`, with one of the equal blocks of
    each stage. It must have `scan=False`.

    >>> from resflax import create_model
    >>> [stem, *_, head] = part_costs(create_model("cifar_resnet20"), (32, 32, 3))
    >>> stem.multiply_adds == 32 * 32 * 3 * 3 * 3 * 16, head.parameters == 64 * 10 + 10
    (True, True)
    """
    parts: dict[str, PartCost] = {}
    model, copies = _without_equal_blocks(model)

    def add(module_name: str, blocks: int = 0, parameters: int = 0, multiply_adds: int = 0) -> str:
        name = module_name.split("_")[0]
        part, times = parts.get(name, PartCost(name, 0, (), 0, 0)), copies.get(module_name, 1)
        parts[name] = part._replace(
            blocks=part.blocks + times * blocks,
            parameters=part.parameters + times * parameters,
            multiply_adds=part.multiply_adds + times * multiply_adds,
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


def _without_equal_blocks(model: ResNet) -> tuple[ResNet, dict[str, int]]:
    """Returns a model with at most two blocks per stage, and how many its second blocks stand for.

    The blocks of a stage are equal from the second one on, unless they are pruned.
    """
    spec = model.spec
    if spec.pruned:
        return model, {}
    short = replace(spec, depths=tuple(min(depth, 2) for depth in spec.depths))
    copies = {f"stage{i}_block2": depth - 1 for i, depth in enumerate(spec.depths, start=1)}
    return model.clone(spec=short), copies


def default_image_shape(spec: Spec, *, size: int = 0, channels: int = 3) -> tuple[int, ...]:
    """Returns the shape `(*space, channels)` of the image that costs are given for.

    Args:
      spec: the architecture.
      size: side in pixels, or length of a signal; 0 for 224, 32 with the stem of CIFAR, 1024 for
        signals, 112 for clips.
      channels: channels of the image.

    >>> from resflax import get_spec
    >>> default_image_shape(get_spec("r3d_18"))
    (16, 112, 112, 3)
    """
    size = size or (32 if spec.stem == "cifar" else DEFAULT_SIZES[spec.dimensions])
    return (*(CLIP_FRAMES, size, size)[-spec.dimensions :], channels)
