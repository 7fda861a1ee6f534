"""Learning rates by depth: layer-wise decay.

As in BEiT (Bao et al. 2021, arXiv:2106.08254, appendix) and timm's `param_groups_layer_decay`: the
stem is layer 0, each block a layer, the head the last one, L; layer l's learning rate is multiplied
by `layer_decay ** (L - l)`. The final norm of a pre-activation network belongs to the last block.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from resflax.nn.scan import REST, parse_block_name

HEAD = "head"


def layer_of(module: str, depths: Sequence[int]) -> int | range:
    """Returns the layer of a network's module; a range for stacked blocks.

    Args:
      module: first part of the path of a parameter.
      depths: number of blocks of each stage.

    >>> [layer_of(name, (3, 4)) for name in ("stem_conv", "stage2_block1", "stage2_rest", "head")]
    [0, 4, range(5, 8), 8]
    """
    stage, _, suffix = module.partition("_")
    if suffix == REST:
        before = sum(depths[: int(stage.removeprefix("stage")) - 1])
        return range(before + 2, before + depths[int(stage.removeprefix("stage")) - 1] + 1)
    if position := parse_block_name(module):
        return sum(depths[: position[0] - 1]) + position[1]
    return {HEAD: sum(depths) + 1, "head_norm": sum(depths)}.get(module, 0)


def layer_scales(params: Any, depths: Sequence[int], *, layer_decay: float) -> Any:
    """Returns the factor of each parameter's learning rate, broadcastable to the parameter.

    Args:
      params: parameters of a `ResNet`, or a part of them; with `scan=True` the factor of stacked
        blocks is an array along their axis.
      depths: number of blocks of each stage.
      layer_decay: factor per layer from the head down.

    >>> params = {"stem_conv": {"kernel": np.ones(3)}, "head": {"bias": np.ones(2)}}
    >>> layer_scales(params, (1, 1), layer_decay=0.5)
    {'head': {'bias': 1.0}, 'stem_conv': {'kernel': 0.125}}
    """
    last = sum(depths) + 1

    def scale(path: Any, leaf: Any) -> Any:
        layer = layer_of(path[0].key, depths)
        if isinstance(layer, range):
            factors = layer_decay ** (last - np.array(layer, np.float64))
            return factors.astype(np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
        return layer_decay ** (last - layer)

    return jax.tree_util.tree_map_with_path(scale, params)
