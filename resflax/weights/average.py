"""The average of several networks' parameters: one network, without the cost of an ensemble."""

from collections.abc import Sequence

import jax
import numpy as np

from resflax.errors import UserError
from resflax.weights.readers import Weights
from resflax.weights.run_history import InitialParameters
from resflax.weights.workdirs import split_checkpoint


def average_weights(networks: Sequence[Weights]) -> Weights:
    """Returns the mean of the networks' parameters, computed in float64.

    Stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407) averages checkpoints of one
    run. Networks that were trained from different initial parameters have no useful average.

    The batch statistics are averaged as well, but they do not fit the averaged parameters: compute
    them with `recompute_batch_stats`, unless all networks have the same (`have_same_batch_stats`).

    Args:
      networks: two networks or more of one architecture, with the same classes and preprocessing,
        as `read_ensemble` returns them.

    Raises:
      UserError: if there are fewer, or their architectures or normalizations differ.
    """
    first = networks[0]
    if len(networks) < 2:
        raise UserError(
            f"{first.where} is one network, and an average needs two or more: expected"
            f" {_checkpoints_of(first)}, an ensemble, or several names"
        )
    for network in networks[1:]:
        if network.config.spec != first.config.spec:
            raise UserError(
                f"{network.where} and {first.where} have different architectures: expected one, as"
                " their parameters are averaged"
            )
        if _normalization(network) != _normalization(first):
            raise UserError(
                f"{network.where} and {first.where} normalize images differently (mean and std are"
                " those of their training data): expected networks with one preprocessing, as"
                " their parameters are averaged; resflax evaluate can average their probabilities"
            )
    names = ", ".join(network.where for network in networks)
    return first._replace(
        variables=jax.tree.map(_mean, *(network.variables for network in networks)),
        source=f"average of {len(networks)} networks: {names}",
        evaluation={},
        where="",
        history=None,
    )


def _normalization(network: Weights) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return network.config.preprocess.mean, network.config.preprocess.std


def check_same_origin(networks: Sequence[Weights]) -> str:
    """Checks that networks began from the same parameters, so that their average is useful.

    Returns:
      A warning if that is not recorded for all of them; else "".

    Raises:
      UserError: if two of them were initialized from different seeds.
    """
    origins = [_origin(network) for network in networks]
    seeds: dict[InitialParameters, Weights] = {}
    for network, origin in zip(networks, origins, strict=True):
        if isinstance(origin, InitialParameters) and not origin.pretrained:
            seeds.setdefault(origin, network)
    if len(seeds) > 1:
        (seed, first), (other_seed, other) = [*seeds.items()][:2]
        raise UserError(
            f"{first.where} and {other.where} were trained from different initial parameters"
            f" ({seed}; {other_seed}), and the average of such parameters is not a useful network:"
            f" average {_checkpoints_of(first)}, or the networks' probabilities with resflax"
            " evaluate"
        )
    if len(set(origins)) == 1 and origins[0] is not None:
        return ""
    return (
        "warning: it is not recorded that the networks began from the same parameters: the average"
        " of others is not a useful network"
    )


def _checkpoints_of(network: Weights) -> str:
    """Returns how to name the last checkpoints of a network's run, as many as it has kept."""
    from resflax.run.checkpoint import list_steps  # imports Orbax

    name = split_checkpoint(network.where)
    if name is None:
        return "the checkpoints of a run, such as runs/x@last:3"
    number = min(3, len(list_steps(name.folder / "checkpoints")))
    if number < 2:
        return "the checkpoints of a run that has kept several (config.checkpoint_max_to_keep)"
    member = f"#{name.members[0]}" if name.members else ""
    return f"checkpoints of one run, such as {name.folder}@last:{number}{member}"


def _origin(network: Weights) -> object:
    """Returns what a network began from, or else its run and member; None for other places."""
    name = split_checkpoint(network.where)
    if network.history and network.history.initial:
        return network.history.initial
    return (name.folder.resolve(), name.members) if name else None


def have_same_batch_stats(networks: Sequence[Weights]) -> bool:
    """Returns whether all networks have equal batch statistics, or none: those were frozen."""
    first = networks[0].variables.get("batch_stats", {})
    return all(
        jax.tree.all(jax.tree.map(np.array_equal, first, n.variables.get("batch_stats", {})))
        for n in networks[1:]
    )


def _mean(*arrays: np.ndarray) -> np.ndarray:
    total = np.zeros(arrays[0].shape)
    for array in arrays:
        total += array
    mean: np.ndarray = (total / len(arrays)).astype(arrays[0].dtype)
    return mean
