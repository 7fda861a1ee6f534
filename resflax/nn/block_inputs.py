"""What the blocks of a network take besides the feature maps: random factors, scales and keys."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from resflax.nn.drop import block_keys, block_rates, drop_path
from resflax.nn.drop_block import stage_drop_blocks
from resflax.nn.fields import resolve
from resflax.nn.gates import input_scales
from resflax.nn.spec import Spec


def block_inputs(
    spec: Spec,
    keys: Key[Array, " n"] | None,
    rates: Float[Array, " blocks"] | None,
    dtype: Any,
) -> list[list[Array | None]]:
    """Returns what the blocks of each stage take besides `x`, as `Residual.__call__` does.

    Each array has an axis over the blocks; None where there is nothing to pass.

    Args:
      spec: the architecture.
      keys: one key per example if the network draws random numbers, else None.
      rates: rates of drop path of all blocks, instead of those of the spec.
      dtype: compute dtype.
    """
    gate = resolve("gate", spec.gate)
    blocks, scales, scalars, every_key = sum(spec.depths), None, None, None
    if keys is not None and spec.drop_path:
        scales = drop_path(keys, block_rates(spec.drop_path, blocks) if rates is None else rates)
    if gate.alpha is not None:
        scalars = jnp.asarray(np.concatenate(input_scales(spec.depths, gate.alpha)), dtype)
    if keys is not None and (gate.is_random or spec.drop_block):
        every_key = block_keys(keys, blocks)
    gate_keys = every_key if gate.is_random else None
    ends, drops = np.cumsum(spec.depths), stage_drop_blocks(len(spec.depths))
    return [
        [
            None if a is None else a[end - depth : end]
            for a in (scales, scalars, gate_keys, every_key if spec.drop_block and drop else None)
        ]
        for depth, end, drop in zip(spec.depths, ends, drops, strict=True)
    ]
