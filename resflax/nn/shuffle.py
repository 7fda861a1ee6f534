"""Random assignment of a batch's examples to the inputs of a MIMO network.

In training, a MIMO network reads several images at once, each by one member. Its rows are formed
from shuffles of the batch, one shuffle per member (Havasi et al. 2021, arXiv:2010.06610, section
2); its logits are put back into the order of the batch, so that targets need no shuffling. The
shuffle depends on the examples' keys only, not on the number of devices that share the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, Shaped

# Folded into each example's key; distinct from the streams of `resflax.nn.drop`.
SHUFFLE_STREAM = 2002


class Shuffling(NamedTuple):
    """How the batches of a MIMO network are shuffled in training.

    Attributes:
      repetitions: how often each example of a batch is used (the paper's batch repetition).
      same_share: share of the rows whose members all read the same example (the paper's input
        repetition, rho).
      axis_name: mapped axis over which the batch is split, if any.
    """

    repetitions: int = 1
    same_share: float = 0.0
    axis_name: str | None = None


class Shuffle(NamedTuple):
    """A shuffle of the global batch per member.

    The examples are numbered over all devices. With repetitions, example e of n is in the shuffles
    `repetitions` times, as the numbers `e`, `e + n`, `e + 2 n` and so on.

    Attributes:
      order: number of the example that each row of the global batch reads, per member.
      position: the inverse: row that reads each example, per member.
    """

    order: Int[Array, "members rows"]
    position: Int[Array, "members rows"]


def make_shuffle(keys: Key[Array, " n"], members: int, shuffling: Shuffling) -> Shuffle:
    """Draws the shuffles of the global batch, from the keys of this device's examples."""
    keys = gather(keys, shuffling.axis_name)

    def draw(key: Array) -> Array:
        shape = (shuffling.repetitions, 1 + members)
        return jax.random.uniform(jax.random.fold_in(key, SHUFFLE_STREAM), shape, jnp.float32)

    # Unlike `jax.random.permutation`, this depends on the examples, not on their order.
    numbers = jnp.swapaxes(jax.vmap(draw)(keys), 0, 1).reshape(-1, 1 + members)
    shared = jnp.argsort(numbers[:, 0])
    count = round(len(shared) * (1 - shuffling.same_share))
    shuffled = shared[:count]

    def shuffle(column: Array) -> Array:
        return jnp.concatenate([shuffled[jnp.argsort(column[shuffled])], shared[count:]])

    order = jax.vmap(shuffle, in_axes=1)(numbers[:, 1:])
    return Shuffle(order, jnp.argsort(order, axis=1))


def join_images(
    images: Float[Array, "members n *space c"],
) -> Float[Array, "n *space members*c"]:
    """Concatenates the members' images along the channels."""
    images = jnp.moveaxis(images, 0, -2)
    return images.reshape(*images.shape[:-2], -1)


def gather(x: Array, axis_name: str | None, *, axis: int = 0) -> Array:
    """Returns an array's parts on all devices along `axis`, in the order of the batch."""
    return lax.all_gather(x, axis_name, axis=axis, tiled=True) if axis_name else x


def shuffle_rows(
    shuffle: Shuffle, x: Shaped[Array, " n *features"], axis_name: str | None = None
) -> Shaped[Array, "members rows *features"]:
    """Returns what the members read in this device's rows of the shuffled batch."""
    everything = gather(x, axis_name)
    return everything[_local_columns(shuffle.order, axis_name) % len(everything)]


def restore_logits(
    shuffle: Shuffle, logits: Float[Array, "members rows classes"], shuffling: Shuffling
) -> Float[Array, "members*repetitions n classes"]:
    """Returns the logits of this device's examples, in the order of the batch."""
    repetitions, axis_name = shuffling.repetitions, shuffling.axis_name
    everything = jnp.repeat(gather(logits, axis_name, axis=1), repetitions, axis=0)
    position = _local_columns(shuffle.position.reshape(len(everything), -1), axis_name)
    return jax.vmap(lambda member, rows: member[rows])(everything, position)


def _local_columns(x: Int[Array, "members columns"], axis_name: str | None) -> Array:
    """Returns the columns of this device, a contiguous part, as of the batch."""
    if not axis_name:
        return x
    size = x.shape[1] // lax.axis_size(axis_name)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis_name) * size, size, axis=1)
