"""The residual block, `y = F(x, W) + shortcut(x)` (He et al. 2015, arXiv:1512.03385, eq. 1)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Key

from resflax.nn.activations import identity
from resflax.nn.checks import check_name
from resflax.nn.gates import GATES, Gate
from resflax.nn.shortcuts import Shortcut, linear_projection

GateFn = Callable[..., Any]


def find_gate(gate: str | Gate | GateFn) -> Gate | GateFn:
    """Returns the row of `GATES` with that name; a function is returned unchanged.

    Raises:
      UserError: if the name is unknown.
    """
    if callable(gate):
        return gate
    check_name("gate", gate, GATES)
    return GATES[gate]


class Residual(nn.Module):
    """Residual block: `y = post(F(h) + shortcut(h))` with `h = pre(x)`.

    Where `F(h)` has the shape of `x`, the shortcut is `x` itself, without parameters.
    `shortcut(h, shape)` is called only where the shapes differ, so a projection Ws has parameters
    only there. The comparison uses the actual shapes, not a configured number of channels.

    The paper's block (v1) has `post=relu`, the default. Pre-activation (v2, He et al. 2016,
    arXiv:1603.05027) has a norm and an activation as `pre`, shared by branch and projection, and
    `post=identity`, so that the identity path carries `x` unchanged.

    Inputs can have any rank, and the branch can be any function. Branch, shortcut and `pre` are
    functions that run in this module's compact scope, so the modules they make belong to this
    block. (A module instance made in another compact scope would keep its parameters there.)

    Attributes:
      branch: F, from array to array.
      shortcut: `(h, shape) -> array of that shape`. None for no shortcut (a plain network).
      always: call the shortcut even where the shapes agree (the paper's option C).
      pre: applied to `x` before branch and shortcut.
      post: applied to the sum.
      gate: how shortcut and branch are combined instead of by a sum: a name in
        `resflax.nn.gates.GATES`, one of its rows, or a function `(h, F(h), shortcut) -> array` that
        runs in this module's compact scope.

    The paper's two-layer example, on vectors:

    >>> import jax, jax.numpy as jnp
    >>> def F(x):
    ...     h = nn.relu(nn.Dense(64, use_bias=False, name="W1")(x))
    ...     return nn.Dense(32, use_bias=False, name="W2")(h)
    >>> shapes = lambda x: jax.tree.map(jnp.shape, Residual(F).init(jax.random.key(0), x)["params"])
    >>> shapes(jnp.ones((8, 32)))
    {'W1': {'kernel': (32, 64)}, 'W2': {'kernel': (64, 32)}}
    >>> shapes(jnp.ones((8, 16)))
    {'W1': {'kernel': (16, 64)}, 'W2': {'kernel': (64, 32)}, 'Ws': {'kernel': (16, 32)}}

    ReZero, a branch with a learned factor that starts at 0:

    >>> x, block = jnp.ones((8, 32)), Residual(F, gate="rezero", post=identity)
    >>> y, variables = block.init_with_output(jax.random.key(0), x)
    >>> bool((y == x).all()), float(variables["params"]["gate"]["scale"])
    (True, 0.0)
    """

    branch: Callable[..., Array]
    shortcut: Shortcut | None = linear_projection
    always: bool = False
    pre: Callable[[Array], Array] = identity
    post: Callable[[Array], Array] = nn.relu
    gate: str | Gate | GateFn | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, " batch *features"],
        branch_scale: Float[Array, " batch"] | None = None,
        input_scale: Float[Array, ""] | None = None,
        keys: Key[Array, " batch"] | None = None,
        branch_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, " batch *out_features"]:
        """Returns `post(F(h) + shortcut(h))`, with the shape of the branch's output.

        Args:
          x: the input. Without `branch_scale` it needs no batch axis.
          branch_scale: factor for each example's `F(h)`, as drawn for stochastic depth by
            `resflax.nn.drop.drop_path`. None for 1.
          input_scale: factor of `pre(x)`, as in normalizer-free networks. None for 1.
          keys: one key per example for a gate that draws random numbers, which it gets as `keys=`.
            None in evaluation, where it draws none.
          branch_keys: the same for a branch that draws random numbers, which gets them as `keys=`.

        Raises:
          ValueError: if the shortcut's shape differs from the branch's, or there is a gate but no
            shortcut.
          UserError: if the gate is an unknown name.
        """
        h = self.pre(x)
        if input_scale is not None:
            h = h * input_scale.astype(h.dtype)
        y = self.branch(h) if branch_keys is None else self.branch(h, keys=branch_keys)
        if branch_scale is not None:
            y = y * branch_scale.astype(y.dtype).reshape(-1, *[1] * (y.ndim - 1))
        if self.shortcut is None:
            if self.gate is not None:
                raise ValueError(f"gate is {self.gate!r}, but the block has no shortcut")
            return self.post(y)
        s = self.shortcut(h, y.shape) if self.always or x.shape != y.shape else x
        if s.shape != y.shape:
            raise ValueError(
                f"the branch returned shape {y.shape}, but the shortcut returned {s.shape}"
            )
        if self.gate is None:
            return self.post(y + s)
        gate = find_gate(self.gate)
        return self.post(gate(h, y, s) if keys is None else gate(h, y, s, keys=keys))

    def step(
        self,
        x: Float[Array, " batch *features"],
        branch_scale: Float[Array, " batch"] | None = None,
        input_scale: Float[Array, ""] | None = None,
        keys: Key[Array, " batch"] | None = None,
        branch_keys: Key[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, " batch *features"], None]:
        """Runs the block as a body for `scan`: returns the new carry and no output."""
        return self(x, branch_scale, input_scale, keys, branch_keys), None
