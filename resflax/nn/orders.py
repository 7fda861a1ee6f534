"""Where norms and activations are in a residual block, as a table.

He et al. 2016 (arXiv:1603.05027), figure 4. Between two convolutions there is always a norm and an
activation; a row says what precedes the branch, ends it, and follows the addition.
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from resflax.nn.layers import Ops

Steps = tuple[str, ...]
NORM, ACT, NORM_ACT = ("norm",), ("act",), ("norm", "act")
STEPS: tuple[Steps, ...] = ((), NORM, ACT, NORM_ACT)


class Order(NamedTuple):
    """Row of `ORDERS`. Each attribute is `()`, `NORM`, `ACT` or `NORM_ACT`.

    Attributes:
      pre: applied to the block's input, for the branch and the projection. The stem ends without
        these, and they precede the pooling before the head.
      last: applied to the output of the branch's last convolution.
      post: applied to the sum with the shortcut.
    """

    pre: Steps = ()
    last: Steps = ()
    post: Steps = ()

    @property
    def stem(self) -> Steps:
        """The steps after the stem's last convolution."""
        return tuple(step for step in NORM_ACT if step not in self.pre)

    def norm_number(self, conv: int) -> int:
        """Returns the number in the name of the norm between a convolution and the next one."""
        return conv + ("norm" in self.pre)

    def post_norm_number(self, convs: int) -> int:
        """Returns the number in the name of the norm after the addition."""
        return self.norm_number(convs) + ("norm" in self.last)


# Where norms and activations are in a block. The names in parentheses are those of figure 4 of
# He et al. 2016 (arXiv:1603.05027).
ORDERS: dict[str, Order] = {
    "original": Order(last=NORM, post=ACT),  # (a), v1
    "norm_after_add": Order(post=NORM_ACT),  # (b) BN after addition
    "act_before_add": Order(last=NORM_ACT),  # (c) ReLU before addition
    "act_only_preact": Order(pre=ACT, last=NORM),  # (d) ReLU-only pre-activation
    "preact": Order(pre=NORM_ACT),  # (e) full pre-activation, v2
}


def apply_steps(
    ops: Ops, steps: Steps, x: Float[Array, "n *space channels"], *, name: str
) -> Float[Array, "n *space channels"]:
    """Applies the norm called `name`, the activation, both or neither."""
    if steps == NORM_ACT:
        return ops.norm_act(x, name=name)
    if steps == NORM:
        return ops.norm(x, name=name)
    return ops.act(x) if steps == ACT else x
