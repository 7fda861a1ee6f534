"""Learning rates by step: optax's curves as rows, and the warm-up that stands before them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from resflax.errors import unknown


class Curve(NamedTuple):
    """A row of `SCHEDULES`.

    Attributes:
      make: `(peak=, steps=, warmup_steps=, boundaries=, factor=, power=) -> schedule`, counted from
        the end of the warm-up.
      rises: the curve holds its own warm-up, and counts from the run's start.
    """

    make: Callable[..., optax.Schedule]
    rises: bool = False


def _constant(*, peak: float, **_: Any) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _step(
    *, peak: float, warmup_steps: int, boundaries: Sequence[int], factor: float, **_: Any
) -> optax.Schedule:
    at: dict[int, float] = {}
    for boundary in boundaries:  # two may fall on one step
        at[boundary - warmup_steps] = at.get(boundary - warmup_steps, 1.0) * factor
    return optax.piecewise_constant_schedule(peak, at)


def _cosine(*, peak: float, steps: int, warmup_steps: int, **_: Any) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(1, steps - warmup_steps))


def _polynomial(
    *, peak: float, steps: int, warmup_steps: int, power: float, **_: Any
) -> optax.Schedule:
    return optax.polynomial_schedule(peak, 0.0, power, max(1, steps - warmup_steps))


def _share(step: int, steps: int) -> float:
    """What optax rounds down to `step` when it multiplies it by `steps`."""
    return (step + 0.5) / steps


def _summit(steps: int, warmup_steps: int) -> int:
    """The step of the peak: where the warm-up ends, or optax's three tenths of the run."""
    return max(0, min(warmup_steps or round(0.3 * steps), steps - 2))


def _cosine_onecycle(*, peak: float, steps: int, warmup_steps: int, **_: Any) -> optax.Schedule:
    summit = _summit(steps, warmup_steps)
    return optax.cosine_onecycle_schedule(steps, peak, _share(summit, steps))


def _linear_onecycle(*, peak: float, steps: int, warmup_steps: int, **_: Any) -> optax.Schedule:
    summit = _summit(steps, warmup_steps)
    # The last phase has the share of the fall that optax's defaults give it: 0.15 of 0.7.
    last = min(steps - 1, max(summit + 1, round(steps - (steps - summit) * 0.15 / 0.7)))
    return optax.linear_onecycle_schedule(
        steps, peak, _share(summit, steps), _share(last, steps) if steps > 1 else 1.0
    )


SCHEDULES: dict[str, Curve] = {
    "constant": Curve(_constant),
    "step": Curve(_step),
    "cosine": Curve(_cosine),
    "polynomial": Curve(_polynomial),
    "cosine_onecycle": Curve(_cosine_onecycle, rises=True),
    "linear_onecycle": Curve(_linear_onecycle, rises=True),
}


def make_schedule(
    name: str,
    *,
    peak: float,
    steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
    power: float = 1.0,
) -> optax.Schedule:
    """Learning rate by step.

    Args:
      name: "constant"; "step": times `factor` at each boundary (He et al. 2015); "cosine": to zero
        at the last step (Loshchilov and Hutter 2017); "polynomial": to zero as
        `(1 - progress)^power`; "linear_onecycle": up, down, and down to nearly nothing (Smith 2018,
        arXiv:1803.09820, section 4.1); "cosine_onecycle": up and down in two halves of a cosine.
        One-cycles begin at a 25th of the peak and end at a 250,000th.
      peak: the largest learning rate.
      steps: of the whole run.
      warmup_steps: linear from `peak / warmup_steps` to `peak` (Goyal et al. 2017, section 2.2). Of
        a one-cycle: where its peak is; 0 for three tenths of the run.
      boundaries: steps, counted from the run's start; none inside the warm-up.
      factor: see "step".
      power: see "polynomial".

    Raises:
      UserError: on an unknown name.

    >>> schedule = make_schedule("step", peak=0.1, steps=64, boundaries=(32, 48))
    >>> [round(float(schedule(step)), 4) for step in (0, 31, 32, 48)]
    [0.1, 0.1, 0.01, 0.001]
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    curve = SCHEDULES[name]
    main = curve.make(
        peak=peak,
        steps=steps,
        warmup_steps=warmup_steps,
        boundaries=boundaries,
        factor=factor,
        power=power,
    )
    if warmup_steps and not curve.rises:
        # Not from 0: a first step that does nothing is lost.
        warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
        main = optax.join_schedules([warmup, main], [warmup_steps])

    def schedule(step: Any) -> Any:
        # Some of optax's mix integer counts with floats, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            return main(step)

    return schedule
