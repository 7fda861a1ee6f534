"""Learning-rate schedules: optax's, as rows of a table, with linear warm-up."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from resflax.errors import UserError, unknown


class ScheduleRow(NamedTuple):
    """A row of `SCHEDULES`.

    Attributes:
      make: `(peak=, minimum=, steps=, warmup_steps=, boundaries=, decay_rate=, power=, cycles=,
        reductions=) -> schedule`, with step 0 at the end of the warm-up.
      has_warmup: the curve includes its warm-up, and step 0 is the start of the run.
    """

    make: Callable[..., optax.Schedule]
    has_warmup: bool = False


def _constant(*, peak: float, **_: Any) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _step(
    *, peak: float, warmup_steps: int, boundaries: Sequence[int], decay_rate: float, **_: Any
) -> optax.Schedule:
    scales: dict[int, float] = {}
    for boundary in boundaries:  # two may round to the same step
        step = boundary - warmup_steps
        scales[step] = scales.get(step, 1.0) * decay_rate
    return optax.piecewise_constant_schedule(peak, scales)


def _plateau(
    *, peak: float, minimum: float, decay_rate: float, reductions: Any, **_: Any
) -> optax.Schedule:
    def schedule(step: Any) -> Any:
        del step
        power = jnp.asarray(reductions, jnp.float32)
        return jnp.maximum(peak * jnp.float32(decay_rate) ** power, minimum)

    return schedule


def _cosine(
    *, peak: float, minimum: float, steps: int, warmup_steps: int, **_: Any
) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(1, steps - warmup_steps), minimum / peak)


def _cosine_cycles(
    *, peak: float, minimum: float, steps: int, warmup_steps: int, cycles: int, **_: Any
) -> optax.Schedule:
    ends = np.array(cycle_ends(steps, warmup_steps, cycles), np.int32) - warmup_steps
    starts = np.concatenate([np.zeros(1, np.int32), ends[:-1]])
    lengths = np.maximum(1, ends - starts)

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.int32)
        cycle = jnp.minimum(jnp.searchsorted(jnp.array(ends), step, side="right"), cycles - 1)
        done = (step - jnp.array(starts)[cycle]).astype(jnp.float32)
        progress = jnp.minimum(done / jnp.array(lengths)[cycle].astype(jnp.float32), 1.0)
        return minimum + (peak - minimum) / 2 * (jnp.cos(jnp.pi * progress) + 1)

    return schedule


def cycle_ends(steps: int, warmup_steps: int, cycles: int) -> tuple[int, ...]:
    """Returns the number of steps after which each cycle of "cosine_cycles" ends.

    The cycles divide the steps after the warm-up; their lengths differ by at most one step.

    Raises:
      UserError: if there are fewer steps than cycles.

    >>> cycle_ends(100, 10, 3), cycle_ends(10, 0, 3)
    ((40, 70, 100), (3, 6, 10))
    """
    length = steps - warmup_steps
    if cycles > max(1, length):
        raise UserError(
            f"config.schedule_cycles is {cycles}, but the run has {length} steps after the"
            f" warm-up: expected at most {max(1, length)}"
        )
    return tuple(warmup_steps + length * i // cycles for i in range(1, cycles + 1))


def _polynomial(
    *, peak: float, minimum: float, steps: int, warmup_steps: int, power: float, **_: Any
) -> optax.Schedule:
    return optax.polynomial_schedule(peak, minimum, power, max(1, steps - warmup_steps))


def _fraction(step: int, steps: int) -> float:
    """Returns a fraction that optax rounds down to `step` after multiplying by `steps`."""
    return (step + 0.5) / steps


def _peak_step(steps: int, warmup_steps: int) -> int:
    """Returns the step of the peak: the end of the warm-up, or 0.3 of the run as in optax."""
    return max(0, min(warmup_steps or round(0.3 * steps), steps - 2))


def _cosine_onecycle(*, peak: float, steps: int, warmup_steps: int, **_: Any) -> optax.Schedule:
    peak_step = _peak_step(steps, warmup_steps)
    return optax.cosine_onecycle_schedule(steps, peak, _fraction(peak_step, steps))


def _linear_onecycle(*, peak: float, steps: int, warmup_steps: int, **_: Any) -> optax.Schedule:
    peak_step = _peak_step(steps, warmup_steps)
    # The last phase is 0.15 / 0.7 of the decay, as with optax's defaults.
    last = min(steps - 1, max(peak_step + 1, round(steps - (steps - peak_step) * 0.15 / 0.7)))
    return optax.linear_onecycle_schedule(
        steps, peak, _fraction(peak_step, steps), _fraction(last, steps) if steps > 1 else 1.0
    )


SCHEDULES: dict[str, ScheduleRow] = {
    "constant": ScheduleRow(_constant),
    "step": ScheduleRow(_step),
    "plateau": ScheduleRow(_plateau),
    "cosine": ScheduleRow(_cosine),
    "cosine_cycles": ScheduleRow(_cosine_cycles),
    "polynomial": ScheduleRow(_polynomial),
    "cosine_onecycle": ScheduleRow(_cosine_onecycle, has_warmup=True),
    "linear_onecycle": ScheduleRow(_linear_onecycle, has_warmup=True),
}


def make_schedule(
    name: str,
    *,
    peak: float,
    steps: int,
    minimum: float = 0.0,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
    boundaries: Sequence[int] = (),
    decay_rate: float = 0.1,
    power: float = 1.0,
    cycles: int = 1,
    reductions: int | Int[Array, ""] = 0,
) -> optax.Schedule:
    """Makes a schedule, from step to learning rate.

    Args:
      name: "constant"; "step": times `decay_rate` at each boundary (He et al. 2015);
        "plateau": times `decay_rate` for each of `reductions`, but at least `minimum`; "cosine": to
        `minimum` at the last step (Loshchilov and Hutter 2017); "cosine_cycles": the same in each
        of `cycles` parts of the run (Huang et al. 2017, arXiv:1704.00109, equation 2);
        "polynomial": to `minimum` as `(1 - progress)^power`; "linear_onecycle": up, down, and down
        to almost zero (Smith 2018, arXiv:1803.09820, section 4.1); "cosine_onecycle": up and down
        in two halves of a cosine. One-cycle schedules start at 1/25 of the peak and end at
        1/250,000.
      peak: highest learning rate.
      steps: number of steps of the run.
      minimum: learning rate at the end of the "cosine", "cosine_cycles" and "polynomial" schedules,
        and the lowest one of "plateau".
      warmup_steps: linear warm-up to `peak` (Goyal et al. 2017, section 2.2). For one-cycle
        schedules: the step of the peak; 0 for 0.3 of the run.
      warmup_start: learning rate of the first step of the warm-up; 0 for `peak / warmup_steps`.
      boundaries: steps of the "step" schedule, counted from the start of the run, after the
        warm-up.
      decay_rate: factor of the "step" and "plateau" schedules.
      power: exponent of the "polynomial" schedule.
      cycles: number of cycles of the "cosine_cycles" schedule; their lengths differ by at most one
        step.
      reductions: how often "plateau" has reduced the learning rate, an integer; it may be traced.

    Raises:
      UserError: on an unknown name, or if there are fewer steps than cycles.

    >>> schedule = make_schedule("step", peak=0.1, steps=64, boundaries=(32, 48))
    >>> [round(float(schedule(step)), 4) for step in (0, 31, 32, 48)]
    [0.1, 0.1, 0.01, 0.001]
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    curve = SCHEDULES[name]
    main = curve.make(
        peak=peak,
        minimum=minimum,
        steps=steps,
        warmup_steps=warmup_steps,
        boundaries=boundaries,
        decay_rate=decay_rate,
        power=power,
        cycles=cycles,
        reductions=reductions,
    )
    if warmup_steps and not curve.has_warmup:
        # Not from 0, where the first step would have no effect.
        start = warmup_start or peak / warmup_steps
        warmup = optax.linear_schedule(start, peak, max(1, warmup_steps - 1))
        main = optax.join_schedules([warmup, main], [warmup_steps])

    def schedule(step: Any) -> Any:
        # Some optax schedules mix ints and floats, which strict dtype promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            return main(step)

    return schedule
