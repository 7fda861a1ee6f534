"""Optimizers, as rows of a table: optax's transformations from a few names and numbers."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from resflax.nn.scan import REST
from resflax.train.weight_decay import Mask

Chain = list[optax.GradientTransformation]
Betas = tuple[float, ...]
# Muon's updates have the root mean square of Adam's: Liu et al. 2025 (arXiv:2502.16982), eq. 4.
MUON_RMS = 0.2


class OptimizerRow(NamedTuple):
    """A row of `OPTIMIZERS`.

    Attributes:
      make: `(rate, mask, decay=, penalty=, momentum=, nesterov=, trust_coefficient=, betas=,
        eps=) -> transformations`; a row names the arguments that it uses, with its own betas and
        eps. The mask is that of trust ratios, `decay` adds the weight decay to the updates, and
        `penalty` is a list of it, empty without weight decay, for optimizers that add it to the
        gradient.
      interpolation: for schedule-free optimizers, from these arguments to the weight of the average
        in the parameters that gradients are computed at.
    """

    make: Callable[..., Chain]
    interpolation: Callable[..., float] | None = None


def _sgd(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    momentum: float,
    nesterov: bool,
    penalty: Chain,
    **_: Any,
) -> Chain:
    sgd = optax.sgd(rate, momentum or None, nesterov and momentum > 0)
    return [*penalty, sgd]


def _adamw(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    decay: optax.GradientTransformation,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    is_nesterov: bool = False,
    **_: Any,
) -> Chain:
    # As `optax.adamw` and `optax.nadamw`, whose weight decay has no factors; so are the next ones.
    adam = optax.scale_by_adam(*betas, eps, nesterov=is_nesterov)
    return [optax.chain(adam, decay, optax.scale_by_learning_rate(rate))]


def _lars(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    momentum: float,
    nesterov: bool,
    decay: optax.GradientTransformation,
    trust_coefficient: float,
    **_: Any,
) -> Chain:
    trust_ratio = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
    lars = optax.chain(
        decay,
        optax.masked(trust_ratio, mask),
        optax.scale_by_learning_rate(rate),
        optax.trace(momentum, nesterov and momentum > 0),
    )
    return [lars]


def _lamb(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    decay: optax.GradientTransformation,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-6,
    **_: Any,
) -> Chain:
    # As `optax.lamb`, whose mask applies to the weight decay only.
    return [
        optax.scale_by_adam(*betas, eps),
        decay,
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(rate),
    ]


def _lion(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    decay: optax.GradientTransformation,
    betas: Betas = (0.9, 0.99),
    **_: Any,
) -> Chain:
    return [optax.chain(optax.scale_by_lion(*betas), decay, optax.scale_by_learning_rate(rate))]


def _rmsprop(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    momentum: float,
    penalty: Chain,
    betas: Betas = (0.9,),
    eps: float = 1e-10,
    **_: Any,
) -> Chain:
    rmsprop = optax.rmsprop(
        rate, *betas, eps, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum or None
    )
    return [*penalty, rmsprop]


def _muon(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    momentum: float,
    nesterov: bool,
    decay: optax.GradientTransformation,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    **_: Any,
) -> Chain:
    muon = optax.contrib.scale_by_muon(
        beta=momentum, eps=eps, nesterov=nesterov, weight_dimension_numbers=_matrices
    )
    rules = {
        "muon": optax.chain(muon, optax.stateless(_match_rms)),
        "adam": optax.scale_by_adam(*betas, eps),
    }
    return [
        optax.partition(rules, _muon_labels),
        decay,
        optax.scale_by_learning_rate(rate),
    ]


def _muon_labels(params: Any) -> Any:
    """Labels the kernels of blocks "muon"; those of stem and head, and all vectors, "adam"."""

    def label(path: Any, leaf: Array) -> str:
        is_hidden = not path[0].key.startswith(("stem", "head"))
        is_kernel = path[-1].key == "kernel" and leaf.ndim - _stacked(path) > 1
        return "muon" if is_hidden and is_kernel else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _stacked(path: Any) -> int:
    """Returns the number of leading axes of a parameter that count blocks, 0 or 1."""
    return int(any(str(entry.key).endswith(f"_{REST}") for entry in path))


def _matrices(params: Any) -> Any:
    """Returns the axes of each kernel as a matrix: all inputs by the outputs, its last axis."""

    def axes(path: Any, leaf: Array) -> optax.contrib.MuonDimensionNumbers:
        inputs = tuple(range(_stacked(path), leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _match_rms(updates: Any, params: Any) -> Any:
    """Scales orthogonal updates, whose root mean square is `1 / sqrt(max(inputs, outputs))`."""
    del params

    def scale(path: Any, update: Array) -> Array:
        outputs = update.shape[-1]
        inputs = update.size // outputs // (update.shape[0] if _stacked(path) else 1)
        return update * (MUON_RMS * max(inputs, outputs) ** 0.5)

    return jax.tree_util.tree_map_with_path(scale, updates)


def _schedule_free_sgd(
    rate: optax.ScalarOrSchedule, mask: Mask, *, momentum: float, penalty: Chain, **_: Any
) -> Chain:
    del momentum  # see `interpolation`
    return [*penalty, optax.sgd(rate)]


def _schedule_free_adamw(
    rate: optax.ScalarOrSchedule,
    mask: Mask,
    *,
    decay: optax.GradientTransformation,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    **_: Any,
) -> Chain:
    # Adam without its first moment, as in `optax.contrib.schedule_free_adamw`.
    return [
        optax.scale_by_rms(betas[1], eps, eps_in_sqrt=False, bias_correction=True),
        decay,
        optax.scale_by_learning_rate(rate),
    ]


OPTIMIZERS: dict[str, OptimizerRow] = {
    "sgd": OptimizerRow(_sgd),
    "adamw": OptimizerRow(_adamw),
    "nadamw": OptimizerRow(partial(_adamw, is_nesterov=True)),
    "lars": OptimizerRow(_lars),
    "lamb": OptimizerRow(_lamb),
    "lion": OptimizerRow(_lion),
    "rmsprop": OptimizerRow(_rmsprop),
    "muon": OptimizerRow(_muon),
    "schedule_free_sgd": OptimizerRow(_schedule_free_sgd, lambda *, momentum, **_: momentum),
    "schedule_free_adamw": OptimizerRow(
        _schedule_free_adamw, lambda *, betas=(0.9, 0.999), **_: betas[0]
    ),
}


def users_of(argument: str) -> tuple[str, ...]:
    """Returns the names of the optimizers that use an argument of `OptimizerRow.make`.

    >>> users_of("trust_coefficient"), users_of("nesterov")
    (('lars',), ('sgd', 'lars', 'muon'))
    """
    rows = OPTIMIZERS.items()
    return tuple(name for name, row in rows if argument in inspect.signature(row.make).parameters)


def default_betas(name: str) -> Betas:
    """Returns the decay rates of an optimizer's moments; () if it has none.

    >>> default_betas("adamw"), default_betas("rmsprop"), default_betas("sgd")
    ((0.9, 0.999), (0.9,), ())
    """
    argument = inspect.signature(OPTIMIZERS[name].make).parameters.get("betas")
    return argument.default if argument else ()


def is_schedule_free(name: str) -> bool:
    """Returns whether an optimizer averages the parameters, which are then evaluated."""
    return OPTIMIZERS[name].interpolation is not None
