"""Parameters selected by patterns of their paths: read, replaced, masked or initialized again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from resflax.errors import UserError
from resflax.nn.patterns import check_patterns, matches, matches_leaf, required_patterns
from resflax.nn.scan import REST, stack_params, unstack_params

Tree = Any


@dataclass(frozen=True)
class Selection:
    """Arrays of `variables` that patterns match. Its methods return new trees.

    Attributes:
      variables: the tree: variables, or parameters alone.
      patterns: the patterns, which `config.freeze` and `make_train_step(freeze=...)` take as well.
    """

    variables: Tree
    patterns: tuple[str, ...]

    def get(self) -> dict[str, Array]:
        """Returns the selected arrays by path, such as "stage1_block1/conv1/kernel".

        Blocks that are stacked by `scan=True` have their own paths, those of `scan=False`.
        """
        return {"/".join(self._path(k)): leaf for k, leaf in self._flat().items() if self._has(k)}

    def set(self, values: Any) -> Tree:
        """Returns the tree with other values of the selected arrays.

        Args:
          values: a function from array to array; arrays by path, as `get` returns them, for some or
            all of the selected arrays; or one array or number, which is broadcast.

        Raises:
          UserError: if a path is not selected, or the shape of a value does not fit, or a value is
            complex and its array real.
        """
        if isinstance(values, Mapping) and (rest := {*values} - {*self.get()}):
            raise UserError(f"{min(rest)} is not selected by {', '.join(self.patterns)}")

        def change(path: str, old: Array) -> Array:
            new = values(old) if callable(values) else values
            if isinstance(values, Mapping):
                new = values.get(path, old)
            if np.iscomplexobj(new) and not np.iscomplexobj(old):
                raise UserError(f"{path} has dtype {old.dtype}: got a complex value")
            try:
                return jnp.broadcast_to(jnp.asarray(new, old.dtype), old.shape)
            except ValueError as e:
                shape = jnp.shape(new)
                raise UserError(f"{path} has shape {old.shape}: got a value of {shape}") from e

        return self._changed(change)

    def freeze(self) -> Tree:
        """Returns a mask of the parameters: True where they are selected.

        `optax.transforms.freeze(mask)` sets their updates to zero. Training by resflax takes the
        patterns instead, and needs neither gradients nor optimizer state of these parameters.

        Raises:
          UserError: if no parameter is selected, only statistics, or some of the blocks that
            `scan=True` stacks, but not all.
        """
        params = self.variables.get("params", self.variables)
        flat = flatten_dict(params)
        mask = {path: matches_leaf(path, x, self.patterns, "select") for path, x in flat.items()}
        if not any(mask.values()):
            raise UserError(
                f"{', '.join(self.patterns)} matches no parameter, only statistics, which no"
                " optimizer changes: select parameters"
            )
        return unflatten_dict(mask)

    def reinitialize(self, model: nn.Module, key: Array, *inputs: Any) -> Tree:
        """Returns the tree with the selected arrays as `model.init` draws them.

        Args:
          model: the network.
          key: random key.
          *inputs: of the network; their shapes are used.
        """
        variables = jax.jit(partial(model.init, train=False))(key, *inputs)
        new = variables if self._has_collections else variables["params"]
        return self.set(select(new, self.patterns).get())

    @property
    def _has_collections(self) -> bool:
        return "params" in self.variables

    def _path(self, key: tuple[str, ...]) -> tuple[str, ...]:
        return key[1:] if self._has_collections else key

    def _flat(self) -> dict[tuple[str, ...], Array]:
        flat: dict[tuple[str, ...], Array] = flatten_dict(unstack_params(self.variables))
        return flat

    def _has(self, key: tuple[str, ...]) -> bool:
        return matches("/".join(self._path(key)), self.patterns)

    def _changed(self, change: Callable[[str, Array], Array]) -> Tree:
        changed = {
            key: change("/".join(self._path(key)), leaf) if self._has(key) else leaf
            for key, leaf in self._flat().items()
        }
        tree = unflatten_dict(changed)
        keys = flatten_dict(self.variables)
        stacked = any(self._path(key)[0].endswith(f"_{REST}") for key in keys)
        return stack_params(tree) if stacked else tree


def select(variables: Tree, patterns: str | tuple[str, ...] | list[str]) -> Selection:
    """Returns the arrays that patterns match, see `resflax.nn.patterns`.

    Args:
      variables: variables of a network, stacked or not, or its parameters alone.
      patterns: one, several separated by commas, or a sequence.

    Raises:
      UserError: if there is no pattern, or one matches no array.

    >>> from resflax import create_model
    >>> model, image = create_model("cifar_resnet14"), jnp.zeros((1, 8, 8, 3))
    >>> variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    >>> variables = jax.tree.map(lambda x: jnp.ones(x.shape), variables)
    >>> selection = select(variables, "stage[23]/*/conv1/kernel")
    >>> list(selection.get())[:2]
    ['stage2_block1/conv1/kernel', 'stage2_block2/conv1/kernel']
    >>> halved = selection.set(lambda kernel: kernel / 2)
    >>> sum(jax.tree.leaves(selection.freeze()))
    4
    """
    selection = Selection(variables, required_patterns(patterns, "patterns"))
    names = ["/".join(selection._path(key)) for key in selection._flat()]
    check_patterns(selection.patterns, names, "pattern")
    return selection
