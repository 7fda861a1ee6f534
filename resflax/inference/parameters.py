"""Variables of a network, read by path."""

from typing import Any

import numpy as np
from flax import traverse_util

from resflax.errors import UserError
from resflax.nn import unstack_params


class Parameters:
    """Variables of a network as float64 arrays, with a record of those that were read.

    Attributes:
      arrays: the variables by collection and path, such as "params/stage1_block1/conv1/kernel".
    """

    def __init__(self, variables: Any) -> None:
        collections = {name: variables[name] for name in ("params", "batch_stats")
                       if name in variables}  # fmt: skip
        self.arrays = traverse_util.flatten_dict(unstack_params(collections), sep="/")
        self._read: set[str] = set()

    def get(self, path: str, leaf: str, collection: str = "params") -> np.ndarray:
        """Returns an array as float64.

        Raises:
          UserError: if the variables have no such array.
        """
        name = f"{collection}/{path}/{leaf}"
        if name not in self.arrays:
            raise UserError(
                f"the variables have no array {name}: expected the variables of the spec's network"
            )
        self._read.add(name)
        return np.asarray(self.arrays[name]).astype(np.float64)

    def module(self, path: str) -> dict[str, np.ndarray]:
        """Returns the parameters of a module by name, empty if it has none."""
        prefix = f"params/{path}/"
        leaves = [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]
        return {leaf: self.get(path, leaf) for leaf in leaves}

    def check_all_read(self, *, ignore: str = "") -> None:
        """Checks that every array was read, except those of the module `ignore`.

        Raises:
          UserError: if one was not.
        """
        rest = {name for name in self.arrays if name.split("/")[1] != ignore} - self._read
        if rest:
            raise UserError(
                f"the spec's network has no array {min(rest)} ({len(rest)} in all): expected the"
                " variables of the spec's network"
            )
