"""Knowledge distillation: a network learns the outputs of a trained one, its teacher.

Hinton et al. 2015 (arXiv:1503.02531), section 2. The teacher sees the images of the step after
augmentation and mixing, so that it and the network that learns have the same crop of the same
mixture, as in Beyer et al. 2021 (arXiv:2106.05237, section 3). Besides the logits, feature maps can
be learned (Romero et al. 2014, arXiv:1412.6550, "hints").
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.errors import UserError
from resflax.nn import ResNet
from resflax.train.metrics import ExampleFn
from resflax.train.step_inputs import TrainInputs


class Distillation(NamedTuple):
    """What a training step distils.

    The loss is `(1 - weight) loss + weight distillation_loss + feature_weight feature_loss`.

    Attributes:
      teacher: `(variables, images) -> logits`, in evaluation mode, of the images that the network
        gets, normalized for it; with `features`, `(logits, maps)`, a dict of arrays by name. The
        variables are `TrainState.teacher`: an argument of the step, so that its program does not
        contain them and is the same for all teachers of an architecture.
      weight: share of the distillation loss, from 0 to 1.
      temperature: see `distillation_loss`.
      features: names of outputs of a `ResNet`'s modules, or patterns, as `ResNet.apply` captures
        them.
      feature_weight: factor of `feature_loss`.
    """

    teacher: Callable[[Any, Array], Any]
    weight: float = 0.5
    temperature: float = 1.0
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0


Maps = Mapping[str, Array]


def make_step_loss(
    loss_fn: ExampleFn, distillation: Distillation | None, variables: Any
) -> Callable[[Any, TrainInputs, Maps], Float[Array, " n"]]:
    """Makes `(outputs, inputs, maps) -> (n,)`, the loss of a step's inputs.

    The maps are the network's `Distillation.features`.

    Args:
      loss_fn: of outputs and targets; not called if its share is 0.
      distillation: what the step distils; None for nothing.
      variables: of the teacher.

    Raises:
      UserError: if there is a teacher without variables; from the returned function, if the two
        networks have other numbers of classes, or features of other shapes.
    """
    if distillation is None:
        return lambda outputs, inputs, maps: loss_fn(outputs, inputs.target)
    if not variables:
        raise UserError(
            "the state has no teacher: expected its variables, by dataclasses.replace(state,"
            " teacher=variables)"
        )
    weight = distillation.weight

    def loss(outputs: Any, inputs: TrainInputs, maps: Maps) -> Array:
        taught = lax.stop_gradient(distillation.teacher(variables, inputs.image))
        taught, taught_maps = taught if distillation.features else (taught, {})
        if taught.shape != outputs.shape[-2:]:
            raise UserError(
                f"the teacher's logits have shape {taught.shape}, and those of the model"
                f" {outputs.shape[-2:]}: expected the same classes"
            )
        total = jnp.float32(0)
        if weight > 0:
            total = weight * distillation_loss(outputs, taught, distillation.temperature)
        if weight < 1:
            total = (1 - weight) * loss_fn(outputs, inputs.target) + total
        if distillation.features:
            total += distillation.feature_weight * feature_loss(maps, taught_maps)
        return total

    return loss


def feature_names(model: nn.Module, distillation: Distillation | None) -> tuple[str, ...]:
    """Returns the names of the features that a step captures of a network.

    Raises:
      UserError: if there are any, and the network is not a `ResNet`, or has members.
    """
    if distillation is None or not distillation.features:
        return ()
    if not isinstance(model, ResNet):
        raise UserError(
            f"features {distillation.features} of a {type(model).__name__} cannot be distilled:"
            " expected a ResNet, which captures its intermediate outputs, or no features"
        )
    if model.spec.ensemble != "none":
        raise UserError(
            f"features {distillation.features} of a network with members, {model.spec.ensemble},"
            " cannot be distilled: expected a model and a teacher without members, or no features"
        )
    return distillation.features


def check_maps(maps: Mapping[str, Any], taught: Mapping[str, Any]) -> None:
    """Raises `UserError` if the features of a network and its teacher have other names or shapes.

    >>> check_maps({"pooled": jnp.zeros((2, 64))}, {"pooled": jnp.zeros((2, 64))})
    """
    for name in (*maps, *taught):
        if name not in maps or name not in taught:
            other = "teacher" if name in maps else "model"
            raise UserError(
                f"feature {name} of distill.features does not exist in the {other}: expected names"
                " that both networks have"
            )
        if maps[name].shape != taught[name].shape:
            raise UserError(
                f"feature {name} of distill.features has shape {maps[name].shape[1:]} in the model"
                f" and {taught[name].shape[1:]} in the teacher: expected features of equal shapes"
            )


def feature_loss(maps: Maps, teacher_maps: Maps) -> Float[Array, " n"]:
    """Computes the mean squared difference of each feature map, and their sum, in float32.

    Romero et al. 2014, eq. 3, without a regressor, and with the mean over the elements in place of
    half the sum.

    Args:
      maps: arrays `(n, ...)` by name, of any float dtype.
      teacher_maps: arrays of the same shapes.

    Raises:
      UserError: if names or shapes differ.

    >>> maps = {"pooled": jnp.array([[1.0, 3.0]])}, {"pooled": jnp.array([[0.0, 1.0]])}
    >>> feature_loss(*maps).tolist()  # (1 + 4) / 2
    [2.5]
    """
    check_maps(maps, teacher_maps)
    losses = []
    for name, x in maps.items():
        difference = x.astype(jnp.float32) - teacher_maps[name].astype(jnp.float32)
        losses.append(jnp.mean(jnp.square(difference), tuple(range(1, x.ndim))))
    return sum(losses[1:], start=losses[0])


def distillation_loss(
    logits: Float[Array, "n classes"] | Float[Array, "members n classes"],
    teacher_logits: Float[Array, "n classes"],
    temperature: float = 1.0,
) -> Float[Array, " n"]:
    """Computes `T^2 KL(softmax(teacher_logits / T) || softmax(logits / T))`, in float32.

    The factor keeps the size of the gradient, which is divided by T^2 (Hinton et al. 2015).

    Args:
      logits: of any float dtype; with members, the result is the mean of the members' losses.
      teacher_logits: of any float dtype.
      temperature: T, more than 0.

    >>> x = jnp.log(jnp.array([[1.0, 3.0]]))
    >>> round(float(distillation_loss(jnp.zeros((1, 2)), x)[0]), 4)  # log 2 - entropy(1/4, 3/4)
    0.1308
    """
    if logits.ndim == 3:
        per_member = jax.vmap(lambda x: distillation_loss(x, teacher_logits, temperature))
        return jnp.mean(per_member(logits), axis=0)
    log_q, log_p = (
        jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (logits, teacher_logits)
    )
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
