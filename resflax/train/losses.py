"""Losses of each example, as a table."""

import inspect
from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from resflax.train.choice import Choice, map_value
from resflax.train.metrics import ExampleFn, check_targets, nan_if_invalid, one_hot

Logits = Float[Array, "n classes"]
Targets = Int[Array, " n"] | Float[Array, "n classes"]
# The smallest `1 - p` that focal loss takes a power of, whose gradient at 0 can be infinite.
MIN_MISS = 1e-12


def cross_entropy(
    logits: Logits, targets: Targets, label_smoothing: float | Choice = 0.0
) -> Float[Array, " n"]:
    """Computes the softmax cross-entropy of each example, in nats, in float32.

    Args:
      logits: logits of any float dtype. With members, `(members, n, classes)`, the result is the
        mean of the members' losses, the loss of a network whose spec has an ensemble.
      targets: labels, or the probability of each class, of a float dtype. The loss of an example
        whose label is not in `range(classes)` is NaN.
      label_smoothing: share of the target that is distributed over all classes (Szegedy et al.
        2016, section 7).

    Raises:
      UserError: when traced, if the targets have another shape or dtype.

    >>> round(float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)  # log 4
    1.3863
    """
    return _per_example(optax.softmax_cross_entropy, logits, targets, label_smoothing)


def binary_cross_entropy(
    logits: Logits,
    targets: Targets,
    label_smoothing: float | Choice = 0.0,
    *,
    target_threshold: float | None = None,
    sum_classes: bool = False,
) -> Float[Array, " n"]:
    """Computes the mean over the classes of the binary cross-entropy, each class against the rest.

    Of the sigmoid of each logit, in nats, in float32; as timm's `BinaryCrossEntropy`, with which
    Wightman et al. 2021 (arXiv:2110.00476, section 2.1) train.

    Args:
      logits: as for `cross_entropy`.
      targets: as for `cross_entropy`.
      label_smoothing: as for `cross_entropy`: also here distributed over all classes.
      target_threshold: makes the target of a class 1 if it is larger, after smoothing and mixing,
        else 0; None keeps it.
      sum_classes: the sum over the classes instead of the mean.

    >>> round(float(binary_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)  # log 2
    0.6931
    """

    def loss(logits: Array, targets: Array) -> Array:
        if target_threshold is not None:
            targets = (targets > target_threshold).astype(jnp.float32)
        return _reduce(optax.sigmoid_binary_cross_entropy(logits, targets), sum_classes)

    return _per_example(loss, logits, targets, label_smoothing)


def focal_loss(
    logits: Logits,
    targets: Targets,
    label_smoothing: float | Choice = 0.0,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    sum_classes: bool = False,
) -> Float[Array, " n"]:
    """Computes the mean over the classes of the focal loss, each class against the rest.

    It is `-a (1 - q) ** gamma log q`, where q is the probability of the target by the sigmoid of
    the logit (Lin et al. 2017, arXiv:1708.02002, eq. 5), in float32, as torchvision's
    `sigmoid_focal_loss`; not the loss of a softmax.

    Args:
      logits: as for `cross_entropy`.
      targets: as for `cross_entropy`.
      label_smoothing: as for `cross_entropy`.
      alpha: a is `alpha` for a target of 1 and `1 - alpha` for 0; -1 leaves it out.
      gamma: exponent; 0 for the binary cross-entropy.
      sum_classes: the sum over the classes instead of the mean.

    >>> loss = focal_loss(jnp.zeros((1, 4)), jnp.array([2]), alpha=-1.0, gamma=1.0)
    >>> round(float(loss[0]), 4)  # log(2) / 2
    0.3466
    """

    def loss(logits: Array, targets: Array) -> Array:
        p, rest = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
        miss = jnp.maximum(p * (1 - targets) + rest * targets, MIN_MISS)  # 1 - q
        losses = optax.sigmoid_binary_cross_entropy(logits, targets) * miss**gamma
        if alpha >= 0:
            losses *= alpha * targets + (1 - alpha) * (1 - targets)
        return _reduce(losses, sum_classes)

    return _per_example(loss, logits, targets, label_smoothing)


def _reduce(losses: Float[Array, "n classes"], sum_classes: bool) -> Float[Array, " n"]:
    return jnp.sum(losses, axis=-1) if sum_classes else jnp.mean(losses, axis=-1)


def _per_example(
    function: Callable[[Array, Array], Array],
    logits: Array,
    targets: Array,
    label_smoothing: float | Choice,
) -> Float[Array, " n"]:
    """Returns the loss of each example: `function` of float32 logits and smoothed targets."""
    check_targets(targets, logits.shape[-2:])
    if logits.ndim == 3:
        per_member = jax.vmap(lambda x: _per_example(function, x, targets, label_smoothing))
        return jnp.mean(per_member(logits), axis=0)
    logits, classes = logits.astype(jnp.float32), logits.shape[-1]
    soft = one_hot(targets, classes) if targets.ndim == 1 else targets.astype(jnp.float32)
    losses = function(logits, map_value(partial(optax.smooth_labels, soft), label_smoothing))
    return losses + nan_if_invalid(targets, classes) if targets.ndim == 1 else losses


# Functions `(logits, targets, label_smoothing=0.0, **options) -> (n,)`, by the name of a config.
LOSSES: MappingProxyType[str, ExampleFn] = MappingProxyType(
    {"cross_entropy": cross_entropy, "bce": binary_cross_entropy, "focal": focal_loss}
)
# Keys of the config that set options of losses.
OPTION_KEYS = {
    "bce_target_threshold": "target_threshold",
    "loss_sum_classes": "sum_classes",
    "focal_alpha": "alpha",
    "focal_gamma": "gamma",
}


def takes_option(loss: str, key: str) -> bool:
    """Returns whether a key of `OPTION_KEYS` sets an option of a loss.

    >>> takes_option("bce", "focal_gamma"), takes_option("focal", "focal_gamma")
    (False, True)
    """
    return OPTION_KEYS[key] in inspect.signature(LOSSES[loss]).parameters


def build_loss(config: ConfigDict) -> ExampleFn:
    """Builds the loss of a config, with its options."""
    keys = [key for key in OPTION_KEYS if takes_option(config.loss, key)]
    options = {OPTION_KEYS[key]: config[key] for key in keys}
    return partial(LOSSES[config.loss], **options) if options else LOSSES[config.loss]
