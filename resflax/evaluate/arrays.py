"""Evaluation of networks of arrays that are not uint8 images: signals, volumes, numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from resflax.data import normalize
from resflax.data.source import Source
from resflax.errors import UserError
from resflax.weights import Weights
from resflax.weights.array_preprocess import ArrayPreprocess
from resflax.zoo import create_model


class ArraySplit:
    """A split of arrays that is evaluated, as the data loader and `evaluate_split` take it.

    Attributes:
      source: the examples, all of them in memory.
      skipped: empty, since all examples have been read.
      eval_transform: None, since arrays are not resized.

    Raises:
      UserError: if their shape or dtype is not that of the network's input.
    """

    def __init__(self, source: Source, preprocess: ArrayPreprocess) -> None:
        self.source, self.eval_transform = source, None
        self.skipped: dict[int, str] = {}
        pixels, _ = source.read(0)
        shape, dtype = (*preprocess.space, preprocess.channels), preprocess.dtype
        if pixels.shape != shape or pixels.dtype != dtype:
            raise UserError(
                f"{source.name} has {pixels.dtype} arrays of shape {pixels.shape}, but the network"
                f" was trained on {dtype} arrays of shape {shape}: expected these"
            )

    def __len__(self) -> int:
        return len(self.source)

    def get_batch(
        self, index: Int[np.ndarray, " batch"], step: int = 0
    ) -> tuple[Num[np.ndarray, "batch *space channels"], Int[np.ndarray, " batch"]]:
        """Returns the arrays and labels of some examples."""
        del step
        arrays, labels = zip(*(self.source.read(int(i)) for i in index), strict=True)
        return np.stack(arrays), np.array(labels, np.int32)


class ArrayClassifier:
    """Computes the logits of networks of arrays; see `MemberClassifier`.

    Args:
      networks: a network, or the members of an ensemble.
      dtype: compute dtype.
    """

    def __init__(self, networks: Sequence[Weights], *, dtype: str = "float32") -> None:
        configs = [network.config for network in networks]

        def logits(arrays: Array, variables: Sequence[Any]) -> Array:
            return jnp.stack(
                [
                    create_model(config.spec, scan=False, dtype=dtype)
                    .apply(
                        own,
                        normalize(arrays, mean=config.preprocess.mean, std=config.preprocess.std),
                        train=False,
                    )
                    .astype(jnp.float32)
                    for config, own in zip(configs, variables, strict=True)
                ]
            )

        self._variables = [jax.tree.map(jnp.asarray, network.variables) for network in networks]
        self._apply = jax.jit(logits)

    def describe_backend(self) -> str:
        """Returns one line that names what computes the logits."""
        return "inference: JAX"

    def members(
        self, images: Num[np.ndarray, "n *space c"], indices: Int[np.ndarray, " n"]
    ) -> Float[Array, "members n classes"]:
        """Returns the logits of each member; the indices have no effect."""
        del indices
        result: Array = self._apply(images, self._variables)
        return result
