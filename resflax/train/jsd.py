"""The Jensen-Shannon loss of AugMix: copies of an example, differently augmented, should agree.

Hendrycks et al. 2020 (arXiv:1912.02781), section 3, equations 2 and 3.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resflax.train.metrics import ExampleFn


def jensen_shannon(logits: Float[Array, "n copies classes"]) -> Float[Array, " n"]:
    """Computes the Jensen-Shannon divergence of the copies of each example, in nats, in float32.

    It is the mean over the copies of `KL(p_k || m)`, where `p_k` is the softmax of copy k and m the
    mean of all `p_k`: 0 for equal ones, at most the logarithm of their number.

    >>> sure = 50 * jnp.eye(2)[None]  # two copies, each sure of another class
    >>> round(float(jensen_shannon(sure)[0]), 4)  # log 2
    0.6931
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    copies = jnp.float32(logits.shape[1])
    log_m = jax.nn.logsumexp(log_p, axis=1, keepdims=True) - jnp.log(copies)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_m), axis=-1), axis=1)


def add_jensen_shannon(loss_fn: ExampleFn, weight: float) -> ExampleFn:
    """Makes the loss of copies: that of the first one, plus `weight` times their divergence.

    As `JsdCrossEntropy` of timm, with the weight `alpha`.
    """

    def loss(logits: Any, targets: Any) -> Array:
        return loss_fn(logits[:, 0], targets) + weight * jensen_shannon(logits)

    return loss


def of_first_copy(function: ExampleFn) -> Callable[[Any, Any], Array]:
    """Makes a metric of the first copy of each example."""
    return lambda logits, labels: function(logits[:, 0], labels)
