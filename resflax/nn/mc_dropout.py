"""Monte Carlo dropout: evaluation with dropout as an ensemble of samples."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resflax.errors import UserError
from resflax.nn.drop import RATES

# Folded into each example's key, with the number of the sample; see `resflax.nn.drop`.
SAMPLE_STREAM = 2003


def sample_logits(
    model: nn.Module,
    variables: Any,
    x: Float[Array, "n height width channels"],
    keys: Key[Array, " n"],
    samples: int,
) -> Float[Array, "samples n classes"]:
    """Returns the logits of networks from which dropout and drop path dropped different parts.

    Gal and Ghahramani 2016 (arXiv:1506.02142), section 3: the samples are members of an ensemble,
    whose mean probability is the prediction. Batch norm uses the running statistics. Sample s of
    an example depends on its key and s only, not on the batch or on `samples`. What precedes the
    first dropped part is computed once for all samples.

    Args:
      model: a `ResNet` whose spec has `dropout`, `drop_path` or `drop_block`.
      variables: its variables.
      x: normalized images.
      keys: one key per example.
      samples: number of samples, 1 or more.

    Raises:
      UserError: if the spec has none of these rates, or `samples` is not an integer >= 1.

    >>> from resflax.zoo import create_model
    >>> model, x = create_model("cifar_resnet8", dropout=0.5), jnp.ones((2, 8, 8, 3))
    >>> variables = model.init(jax.random.key(0), x, train=False)
    >>> sample_logits(model, variables, x, jax.random.split(jax.random.key(1), 2), 5).shape
    (5, 2, 10)
    """
    spec: Any = getattr(model, "spec", None)
    if spec is None or not any(getattr(spec, name) for name in RATES):
        raise UserError(
            "MC dropout needs a network with dropout: expected spec.dropout, spec.drop_path or"
            " spec.drop_block above 0, as the network was trained"
        )
    if type(samples) is not int or samples < 1:
        raise UserError(f"samples is {samples!r}: expected an integer >= 1")

    def sample(number: Array) -> Array:
        def sample_key(key: Array) -> Array:
            return jax.random.fold_in(jax.random.fold_in(key, SAMPLE_STREAM), number)

        dropped: Any = model.apply(
            variables, x, train=False, dropout_keys=jax.vmap(sample_key)(keys)
        )
        return dropped

    return jax.vmap(sample)(jnp.arange(samples))
