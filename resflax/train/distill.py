"""Knowledge distillation: a network learns the outputs of a trained one, its teacher.

Hinton et al. 2015 (arXiv:1503.02531), section 2. The teacher sees the images of the step after
augmentation and mixing, so that it and the network that learns have the same crop of the same
mixture, as in Beyer et al. 2021 (arXiv:2106.05237, section 3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resflax.errors import UserError
from resflax.train.metrics import ExampleFn
from resflax.train.step_inputs import TrainInputs


class Distillation(NamedTuple):
    """What a training step distils: `(1 - weight) loss + weight distillation_loss`.

    Attributes:
      teacher: `(variables, images) -> logits`, in evaluation mode, of the images that the network
        gets, normalized for it. The variables are `TrainState.teacher`: an argument of the step, so
        that its program does not contain them and is the same for all teachers of an architecture.
      weight: share of the distillation loss, from 0 to 1.
      temperature: see `distillation_loss`.
    """

    teacher: Callable[[Any, Array], Array]
    weight: float = 0.5
    temperature: float = 1.0


def make_step_loss(
    loss_fn: ExampleFn, distillation: Distillation | None, variables: Any
) -> Callable[[Any, TrainInputs], Float[Array, " n"]]:
    """Makes `(outputs, inputs) -> (n,)`, the loss of a step's inputs.

    Args:
      loss_fn: of outputs and targets; not called if its share is 0.
      distillation: what the step distils; None for nothing.
      variables: of the teacher.

    Raises:
      UserError: if there is a teacher without variables; from the returned function, if the two
        networks have other numbers of classes.
    """
    if distillation is None:
        return lambda outputs, inputs: loss_fn(outputs, inputs.target)
    if not variables:
        raise UserError(
            "the state has no teacher: expected its variables, by dataclasses.replace(state,"
            " teacher=variables)"
        )
    teach, weight, temperature = distillation

    def loss(outputs: Any, inputs: TrainInputs) -> Array:
        taught = lax.stop_gradient(teach(variables, inputs.image))
        if taught.shape != outputs.shape[-2:]:
            raise UserError(
                f"the teacher's logits have shape {taught.shape}, and those of the model"
                f" {outputs.shape[-2:]}: expected the same classes"
            )
        soft = distillation_loss(outputs, taught, temperature)
        if weight == 1:
            return soft
        return (1 - weight) * loss_fn(outputs, inputs.target) + weight * soft

    return loss


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
