"""The residual theorem, `y = F(x, W) + shortcut(x)` (He et al. 2015, arXiv:1512.03385, eq. 1)."""

from collections.abc import Callable

import flax.linen as nn
import jax

from resflax.nn.shortcuts import Shortcut, linear_projection

Array = jax.Array


def identity(x: Array) -> Array:
    """`x`."""
    return x


class Residual(nn.Module):
    """`y = post(F(h) + shortcut(h))` with `h = pre(x)`: the only place that adds a shortcut.

    Where `F(h)` has the shape of `x` the shortcut is `x` itself: no parameter, no product. Only
    where the shapes differ is `shortcut(h, shape)` called, so only there does a projection Ws own
    a parameter. The actual shapes decide, never a count of filters.

    The paper's block (v1) is `post=relu`, the default. Pre-activation (v2, He et al. 2016,
    arXiv:1603.05027) is `pre=` norm and activation, shared by branch and projection, and
    `post=identity`: the identity path then carries `x` untouched.

    Any rank of input, any branch. Branch, shortcut and `pre` are *functions*, run in this module's
    compact scope, so that the modules they make belong to this block. (A module instance that was
    made in another compact scope would keep its parameters there.)

    Attributes:
      branch: F, from an array to an array.
      shortcut: from `(h, shape)` to an array of that shape; None for no shortcut (a plain net).
      always: call the shortcut also where the shapes agree (the paper's option C).
      pre: applied to `x` before branch and shortcut.
      post: applied to the sum.

    The paper's two-layer example, on vectors:

    >>> import jax.numpy as jnp
    >>> def F(x):
    ...     h = nn.relu(nn.Dense(64, use_bias=False, name="W1")(x))
    ...     return nn.Dense(32, use_bias=False, name="W2")(h)
    >>> shapes = lambda x: jax.tree.map(jnp.shape, Residual(F).init(jax.random.key(0), x)["params"])
    >>> shapes(jnp.ones((8, 32)))
    {'W1': {'kernel': (32, 64)}, 'W2': {'kernel': (64, 32)}}
    >>> shapes(jnp.ones((8, 16)))
    {'W1': {'kernel': (16, 64)}, 'W2': {'kernel': (64, 32)}, 'Ws': {'kernel': (16, 32)}}
    """

    branch: Callable[[Array], Array]
    shortcut: Shortcut | None = linear_projection
    always: bool = False
    pre: Callable[[Array], Array] = identity
    post: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, scale: Array | None = None) -> Array:
        """Maps `x` to `post(F(h) + shortcut(h))`, of the branch's shape.

        With a `scale`, `(n,)` for `x` of shape `(n, ...)`, each example's `F(h)` is multiplied by
        its number first: stochastic depth (`ops.drop_path`).

        Raises:
          ValueError: if the shortcut's shape is not the branch's.
        """
        h = self.pre(x)
        y = self.branch(h)
        if scale is not None:
            y = y * scale.astype(y.dtype).reshape(-1, *[1] * (y.ndim - 1))
        if self.shortcut is None:
            return self.post(y)
        s = self.shortcut(h, y.shape) if self.always or x.shape != y.shape else x
        if s.shape != y.shape:
            raise ValueError(f"the branch gives {y.shape}, but the shortcut gives {s.shape}")
        return self.post(y + s)

    def step(self, x: Array, scale: Array | None = None) -> tuple[Array, None]:
        """The same as a carry for `scan`."""
        return self(x, scale), None
