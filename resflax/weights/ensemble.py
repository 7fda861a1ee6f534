"""Ensembles: several trained networks for the same classes and images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from resflax.errors import Report, UserError, print_to_stderr
from resflax.nn import ResNet, Spec
from resflax.weights.bridge import Variables, stack_variables
from resflax.weights.preprocess import ChannelAffine, Preprocess, renormalization
from resflax.weights.pretrained import adapt_weights
from resflax.weights.readers import Weights, read_members
from resflax.weights.workdirs import split_checkpoint
from resflax.zoo import create_model

Where = str | Path


class Ensemble(NamedTuple):
    """A model, the variables of several networks, their preprocessing and their class names.

    The logits of all members, `(size, n, classes)`, for images that `preprocess` returned, are
    `jax.vmap(partial(model.apply, train=False))(variables, ensemble.normalize(images))`.

    Attributes:
      model: the network that all members are.
      variables: float32 variables in the tree of `model`, with a leading axis of `size` members.
      preprocess: resize, crop and normalization for evaluation, those of the first member.
      classes: class names by label; empty if they are not known.
      source: one line that says what was loaded.
      size: number of members.
      normalization: arrays `(size, channels)`: the map from images that `preprocess` has normalized
        to those that each member takes, since members can differ in mean and standard deviation.
    """

    model: ResNet
    variables: Variables
    preprocess: Preprocess
    classes: tuple[str, ...]
    source: str
    size: int
    normalization: ChannelAffine

    def normalize(
        self, images: Float[Array, "n *space channels"]
    ) -> Float[Array, "size n *space channels"]:
        """Returns the images, as `preprocess` returns them, for each member."""
        ones = [1] * (images.ndim - 1)
        scale, bias = (a.reshape(self.size, *ones, a.shape[-1]) for a in self.normalization)
        return images * scale + bias


def load_ensemble(
    where: Where | Sequence[Where],
    *,
    model: str | Spec | None = None,
    channels: int | None = None,
    revision: str | None = None,
    **options: Any,
) -> Ensemble:
    """Loads several networks of one architecture, their variables stacked.

    Args:
      where: the workdir of an ensemble ("runs/x", "runs/x@best", "runs/x#0,2"), several checkpoints
        of a run ("runs/x@last:3"), or a list of names of any kind, see `read_members`.
      model: model name or spec; by default that of the runs or the config.json.
      channels: as in `load_pretrained`.
      revision: branch, tag or commit of a repository.
      **options: arguments of `create_model`, such as `dtype="bfloat16"`.

    Raises:
      UserError: as `read_ensemble`, or if the members have different architectures.
    """
    wheres = [where] if isinstance(where, Where) else where
    members = [
        adapt_weights(member, channels=channels)
        for member in read_ensemble(wheres, model, revision=revision)
    ]
    config = members[0].config
    for member in members:
        if member.config.spec != config.spec:
            raise UserError(
                f"{member.where} and {members[0].where} have different architectures: expected one,"
                " as their variables are stacked"
            )
    network = create_model(config.spec, **options)
    trees = [stack_variables(m.variables) if network.scan else m.variables for m in members]
    normalizations = [
        renormalization(config.preprocess, member.config.preprocess) for member in members
    ]
    return Ensemble(
        network,
        jax.tree.map(lambda *arrays: np.stack(arrays), *trees),
        config.preprocess,
        config.labels,
        describe_members(members),
        len(members),
        ChannelAffine(*map(np.stack, zip(*normalizations, strict=True))),
    )


def read_ensemble(
    wheres: Sequence[Where],
    name: str | Spec | None = None,
    *,
    revision: str | None = None,
    report: Report = print_to_stderr,
) -> tuple[Weights, ...]:
    """Reads the weights of all networks that some names mean; architectures can differ.

    Args:
      wheres: at least one name, each as in `read_members`.
      name: model name or spec; None to use those of the runs or the config.json.
      revision: branch, tag or commit of a repository.
      report: called with messages.

    Returns:
      One entry per network, in the order of the names. Networks without class names get those of
      the others.

    Raises:
      UserError: as `read_members`, or if a network occurs twice, or the classes, image channels or
        preprocessing of two networks differ. Mean and standard deviation can differ: those of runs
        are computed from their training data.
    """
    members = tuple(
        member
        for where in wheres
        for member in read_members(where, name, revision=revision, report=report)
    )
    seen = set[object]()
    for member in members:
        if (key := _identity(member)) in seen:
            raise UserError(f"{member.where} is given twice: expected each network once")
        seen.add(key)
    for member in members[1:]:
        _check_same_task(members[0], member)
    labels = next((m.config.labels for m in members if m.config.labels), ())
    for member in members:
        if member.config.labels not in ((), labels):
            named = next(m for m in members if m.config.labels)
            raise UserError(
                f"{member.where} and {named.where} have other class names"
                f" ({_first_difference(member.config.labels, labels)}): expected members for the"
                " same classes in the same order"
            )
    return tuple(m._replace(config=m.config._replace(labels=labels)) for m in members)


def _identity(member: Weights) -> object:
    """Returns what two names of one network have in common: workdir, step and member; or path."""
    name = split_checkpoint(member.where)
    if name is None:
        path = Path(member.where)
        return path.resolve() if path.exists() else member.where
    return name.folder.resolve(), member.evaluation["steps"], name.members


def _check_same_task(first: Weights, other: Weights) -> None:
    """Raises `UserError` if two networks have other classes, image channels or preprocessing."""
    values = [
        {
            "number of classes": weights.config.spec.num_classes,
            "number of image channels": weights.config.channels,
            **vars(weights.config.preprocess),
        }
        for weights in (first, other)
    ]
    for own in values:
        del own["mean"], own["std"]
    for key in values[0] | values[1]:  # arrays have further ones
        value, given = (own.get(key) for own in values)
        if given != value:
            raise UserError(
                f"{other.where} has another {key} than {first.where} ({given}, not {value}):"
                " expected members with the same classes and preprocessing"
            )


def _first_difference(labels: Sequence[str], expected: Sequence[str]) -> str:
    label = next(i for i, pair in enumerate(zip(labels, expected, strict=True)) if len({*pair}) > 1)
    return f"class {label} is {labels[label]!r} and {expected[label]!r}"


def describe_members(members: Sequence[Weights]) -> str:
    """Returns one line that says which networks an ensemble has."""
    if len(members) == 1:
        return members[0].source
    return f"ensemble of {len(members)} networks: {', '.join(m.where for m in members)}"
