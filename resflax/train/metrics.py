"""Loss and accuracy."""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Metrics = dict[str, Array]


def cross_entropy(logits: Array, targets: Array, label_smoothing: float = 0.0) -> Array:
    """Softmax cross-entropy of each example, in nats, float32 `(n,)`.

    Args:
      logits: `(n, classes)`, any float dtype.
      targets: labels, int `(n,)`, or the probability of each class, float `(n, classes)`.
      label_smoothing: the share of the target that is spread over all classes (Szegedy et al.
        2016, section 7).

    >>> round(float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)  # log 4
    1.3863
    """
    logits = logits.astype(jnp.float32)
    if targets.ndim == 1:
        targets = one_hot(targets, logits.shape[-1])
    return optax.softmax_cross_entropy(
        logits, optax.smooth_labels(targets.astype(jnp.float32), label_smoothing)
    )


def one_hot(labels: Array, classes: int) -> Array:
    """Certain targets, float32 `(n, classes)`."""
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32)


def correct(logits: Array, labels: Array) -> Array:
    """1.0 where the largest logit is the label's, else 0.0; float32 `(n,)`. NaN is never right."""
    right = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return (right & ~jnp.isnan(logits).any(axis=-1)).astype(jnp.float32)
