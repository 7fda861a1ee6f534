"""Fixup initialization of networks without norms (Zhang et al. 2019, arXiv:1901.09321)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from resflax.errors import UserError
from resflax.nn.functions import describe
from resflax.nn.spec import Spec


def fixup_params(spec: Spec, params: Any) -> Any:
    """Returns initial parameters, rescaled by the rules 1 and 2 of Fixup (section 3).

    The head and the last convolution of every branch become 0; the other convolutions of a branch
    are multiplied by `L ** (-1 / (2 m - 2))`, for L blocks of m convolutions. Shortcuts and stem
    are unchanged. The multiplier of rule 3 is `gate="fixup"`; its scalar biases are not here.

    The paper's CIFAR runs train scalars with a tenth of the learning rate, in optax with
    `optax.masked(optax.scale(0.1), mask)` after the optimizer, for a mask of `"*/gate/scale"`.
    `decay_mask="kernels"`, the default of `make_optimizer`, leaves scalars out of weight decay.

    Args:
      spec: the architecture, whose blocks are rows of convolutions.
      params: the collection "params", of a network with `scan=True` or `scan=False`.

    Raises:
      UserError: if a block is a function.

    >>> from resflax import create_model
    >>> model = create_model("cifar_resnet8", norm="none", gate="fixup", zero_init=False)
    >>> image = jnp.ones((1, 8, 8, 3))
    >>> variables = model.init(jax.random.key(0), image, train=False)
    >>> params = fixup_params(model.spec, variables["params"])
    >>> float(jnp.abs(model.apply({"params": params}, image, train=False)).max())
    0.0
    """
    blocks = sum(spec.depths)
    lengths = []
    for value, block in zip(spec.block_values, spec.blocks, strict=True):
        if callable(block):
            raise UserError(
                f"block is {describe(value)}, a function, and Fixup rescales convolutions:"
                " expected rows of ConvRow"
            )
        lengths.append(len(block))

    def rescale(path: Any, leaf: Array) -> Array:
        module, *inner = (entry.key for entry in path)
        if module == "head":
            return jnp.zeros_like(leaf)
        stage = re.fullmatch(r"stage(\d+)_.*", module)
        conv = re.fullmatch(r"conv(\d+)", inner[0])
        if not stage or not conv or inner[-1] != "kernel":
            return leaf
        length = lengths[int(stage[1]) - 1]
        if int(conv[1]) == length:
            return jnp.zeros_like(leaf)
        return leaf * blocks ** (-1 / (2 * length - 2))

    return jax.tree_util.tree_map_with_path(rescale, params)
