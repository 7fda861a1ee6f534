"""Efficient ensembles: one network that contains several members, as a table.

Each row keeps its members in another axis of the feature maps. Blocks, shortcuts and stems are
those of a single network: a row replaces the operations that they call, and defines what the first
convolution reads and how the head's outputs are split.

- BatchEnsemble (Wen et al. 2020, arXiv:2002.06715): rows of the batch. A kernel is shared; member i
  has `W * outer(r_i, s_i)`, computed as `((x * r_i) W) * s_i`, and separate norms and biases.
- Packed ensemble (Laurent et al. 2023, arXiv:2210.09184, with gamma = 1): groups of channels.
- MIMO (Havasi et al. 2021, arXiv:2010.06610): only the first convolution, which reads several
  images, and the head, which classifies each of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resflax.errors import UserError
from resflax.nn.batch_norm import statistics_dtype
from resflax.nn.checks import check_integer, check_number
from resflax.nn.layers import Ops, make_ops
from resflax.nn.shuffle import Shuffling, join_images, make_shuffle, restore_logits, shuffle_rows
from resflax.nn.space import per_channel

Keys = Key[Array, " n"] | None


def random_signs(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initializes to -1 or 1, each with probability 1/2 (Wen et al. 2020, appendix B)."""
    return jax.random.rademacher(key, shape, dtype)


def log_mean_probability(
    logits: Float[Array, "members n classes"],
) -> Float[Array, "n classes"]:
    """Returns the logarithm of the mean over the members of their class probabilities.

    Lakshminarayanan et al. 2017 (arXiv:1612.01474), section 2.4. In float32 (float64 for float64
    logits). The results are logits of the ensemble: their softmax is the mean probability.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5]], [[0.25, 0.75]]]))
    >>> [round(float(p), 3) for p in jnp.exp(log_mean_probability(logits)[0])]
    [0.375, 0.625]
    """
    log_probability = jax.nn.log_softmax(logits.astype(statistics_dtype(logits)))
    return jax.nn.logsumexp(log_probability, axis=0) - jnp.log(len(logits)).astype(
        log_probability.dtype
    )


def _split_rows(x: Array, members: int) -> Array:
    """Reshapes rows `(n * members, ...)` to `(n, members, ...)`."""
    return x.reshape(-1, members, *x.shape[1:])


class MemberScale(nn.Module):
    """Multiplies the channels of each member by its vector, and may add another one.

    Attributes:
      members: number of members; row `i * members + m` of the input is member m's of example i.
      use_bias: whether to add a vector.
      dtype: dtype of the result.
    """

    members: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "rows *space channels"]) -> Array:
        """Returns `x * scale + bias`, with a row of `scale` and `bias` per member."""
        vectors, inner = (self.members, x.shape[-1]), [1] * (x.ndim - 2)
        rows = _split_rows(x.astype(self.dtype), self.members)

        def vector(name: str, init: Any) -> Array:
            array = self.param(name, init, vectors, jnp.float32).astype(self.dtype)
            return array.reshape(1, self.members, *inner, -1)

        rows = rows * vector("scale", random_signs)
        if self.use_bias:
            rows = rows + vector("bias", nn.initializers.zeros)
        return rows.reshape(x.shape)


class GroupedDense(nn.Module):
    """Linear layer with bias whose inputs and outputs are split into groups.

    As in a grouped convolution, the kernel has the shape `(inputs / groups, features)`: the columns
    of a group multiply the inputs of that group.
    """

    features: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n features"]:
        """Computes the outputs of all groups."""
        shape = (x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        kernel = kernel.reshape(shape[0], self.groups, -1)
        x = x.astype(self.dtype).reshape(len(x), self.groups, -1)
        y = jnp.einsum("ngi,igo->ngo", x, kernel).reshape(len(x), -1)
        return y + per_channel(bias, y)


def _rank_one_ops(members: int, **fields: Any) -> Ops:
    """Returns operations on `(n * members, ...)` of BatchEnsemble.

    The norms, like the biases, are each member's own, as in the authors' code (Edward2's
    `EnsembleSyncBatchNorm`); the paper does not say.
    """
    scale = partial(MemberScale, members, dtype=fields["dtype"])

    def lift_norm(module_class: Any) -> Callable[..., Callable[[Array], Array]]:
        per_member = nn.vmap(
            module_class,
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            axis_size=members,
        )

        def make(**fields: Any) -> Callable[[Array], Array]:
            norm = per_member(**fields)
            return lambda x: norm(_split_rows(x, members)).reshape(x.shape)

        return make

    ops = make_ops(lift_norm=lift_norm, **fields)

    def conv(x: Array, *args: Any, name: str, **kwargs: Any) -> Array:
        y = ops.conv(scale(name=f"{name}_r")(x), *args, name=name, **kwargs)
        return scale(name=f"{name}_s")(y)

    def dense(x: Array, features: int, *, name: str) -> Array:
        y = ops.dense(scale(name=f"{name}_r")(x), features, name=name, use_bias=False)
        return scale(name=f"{name}_s", use_bias=True)(y)

    return dataclasses.replace(ops, conv=conv, image_conv=conv, dense=dense, fused_conv_norm=None)


def _grouped_ops(members: int, **fields: Any) -> Ops:
    """Returns operations on `(n, ..., members * channels)` of a packed ensemble."""
    ops = make_ops(**fields)

    def conv(x: Array, *args: Any, groups: int = 1, **kwargs: Any) -> Array:
        return ops.conv(x, *args, groups=groups * members, **kwargs)

    def dense(x: Array, features: int, *, name: str) -> Array:
        return GroupedDense(features, members, fields["dtype"], name=name)(x)

    return dataclasses.replace(
        ops, conv=conv, dense=dense, channel_groups=members, fused_conv_norm=None
    )


class Inputs(NamedTuple):
    """Input of the first convolution of a network.

    Attributes:
      images: rows of images, possibly with several images in the channels of each.
      keys: one key per row for drop path and dropout, or None.
      split_logits: `(rows, head outputs) -> (members, n, classes)`.
    """

    images: Float[Array, "rows *space channels"]
    keys: Keys
    split_logits: Callable[[Array], Array]


def _one(images: Array, keys: Keys, members: int, shuffling: Shuffling | None) -> Inputs:
    return Inputs(images, keys, lambda logits: logits[None])


def _repeat_rows(images: Array, keys: Keys, members: int, shuffling: Shuffling | None) -> Inputs:
    """Repeats each image for all members, in training as well, so that each sees every example."""
    if keys is not None and members > 1:
        keys = jax.vmap(lambda key: jax.random.split(key, members))(keys).reshape(-1)

    def split(logits: Array) -> Array:
        return jnp.swapaxes(_split_rows(logits, members), 0, 1)

    return Inputs(jnp.repeat(images, members, axis=0), keys, split)


def _split_channels(logits: Float[Array, "n outputs"], members: int) -> Array:
    return jnp.swapaxes(logits.reshape(len(logits), members, -1), 0, 1)


def _share_images(images: Array, keys: Keys, members: int, shuffling: Shuffling | None) -> Inputs:
    return Inputs(images, keys, partial(_split_channels, members=members))


def _join_images(images: Array, keys: Keys, members: int, shuffling: Shuffling | None) -> Inputs:
    """Puts one image per member into the channels: shuffled ones, or the same in evaluation."""
    if shuffling is None or keys is None:
        same = jnp.broadcast_to(images, (members, *images.shape))
        return Inputs(join_images(same), keys, partial(_split_channels, members=members))
    shuffle, axis_name = make_shuffle(keys, members, shuffling), shuffling.axis_name

    def split(logits: Array) -> Array:
        return restore_logits(shuffle, _split_channels(logits, members), shuffling)

    rows = join_images(shuffle_rows(shuffle, images, axis_name))
    return Inputs(rows, shuffle_rows(shuffle, keys, axis_name)[0], split)


class EnsembleRow(NamedTuple):
    """Row of `ENSEMBLES`.

    Attributes:
      make_ops: `(members, **fields) -> Ops`, with the fields of `make_ops`.
      make_inputs: `(images, keys, members, shuffling) -> Inputs`; in evaluation, `shuffling` is
        None.
      rows: whether the members are rows of the batch.
      channels: whether the members are groups of channels.
      shuffles: whether training shuffles the batch for each member.
      fields: names of the spec's fields that the row uses, of `ENSEMBLE_FIELDS`.
      shipped: fields that take no functions with the ensemble: those of a single network would mix
        its members.
    """

    make_ops: Callable[..., Ops]
    make_inputs: Callable[[Array, Keys, int, Shuffling | None], Inputs]
    rows: bool = False
    channels: bool = False
    shuffles: bool = False
    fields: tuple[str, ...] = ("members",)
    shipped: tuple[str, ...] = ()

    def head_outputs(self, members: int, classes: int) -> int:
        """Returns the outputs of the head for one row."""
        return classes if self.rows else members * classes

    def merge_rows(self, x: Float[Array, "rows *space c"], members: int) -> Array:
        """Returns a feature map with the members' channels next to each other."""
        if not self.rows:
            return x
        x = jnp.moveaxis(_split_rows(x, members), 1, -2)
        return x.reshape(*x.shape[:-2], -1)


def _plain_ops(members: int, **fields: Any) -> Ops:
    return make_ops(**fields)


# Efficient ensembles: several members in one network.
ENSEMBLES: dict[str, EnsembleRow] = {
    # One network.
    "none": EnsembleRow(_plain_ops, _one, fields=()),
    # BatchEnsemble (Wen et al. 2020, arXiv:2002.06715).
    "batch": EnsembleRow(_rank_one_ops, _repeat_rows, rows=True, shipped=("norm", "head")),
    # Packed ensemble (Laurent et al. 2023, arXiv:2210.09184).
    "packed": EnsembleRow(
        _grouped_ops,
        _share_images,
        channels=True,
        fields=("members", "alpha"),
        shipped=("block", "stem", "shortcut", "norm", "pooling", "head"),
    ),
    # MIMO (Havasi et al. 2021, arXiv:2010.06610).
    "mimo": EnsembleRow(
        _plain_ops,
        _join_images,
        shuffles=True,
        fields=("members", "batch_repetition", "input_repetition"),
        shipped=("stem", "head"),
    ),
}
# The spec's fields of ensembles, with their defaults.
ENSEMBLE_FIELDS: dict[str, float] = {
    "members": 1,
    "alpha": 1.0,
    "batch_repetition": 1,
    "input_repetition": 0.0,
}
# Far above any in use, as in `resflax.nn.spec`.
MAX_MEMBERS, MAX_ALPHA = 65_536, 65_536.0


def check_ensemble_fields(name: str, row: EnsembleRow, values: Mapping[str, Any]) -> None:
    """Checks the fields of an ensemble.

    Args:
      name: of the ensemble, for messages.
      row: its row.
      values: values of `ENSEMBLE_FIELDS`.

    Raises:
      UserError: if a value is invalid, or is not the default though the ensemble does not use it.
    """
    for field in ("members", "batch_repetition"):
        check_integer(field, values[field], 1, MAX_MEMBERS)
    check_number("alpha", values["alpha"], 0.0, MAX_ALPHA)
    check_number("input_repetition", values["input_repetition"], 0.0, 1.0)
    for field, default in ENSEMBLE_FIELDS.items():
        if field not in row.fields and values[field] != default:
            users = [repr(name) for name, other in ENSEMBLES.items() if field in other.fields]
            raise UserError(
                f"{field} is {values[field]!r}, but ensemble is {name}: use {field}={default} or"
                f" ensemble={' or '.join(users)}"
            )
