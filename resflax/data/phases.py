"""Phases of a run: consecutive steps with one size of images and of batches."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Phase(NamedTuple):
    """Consecutive training steps with one size of images and one of batches.

    Attributes:
      start: first step.
      stop: end of the steps, exclusive.
      batch_size: examples per step, over all devices.
      image_size: side of the training images in pixels; 0 for that of the dataset.
      offset: number of examples before step s, minus `s * batch_size`; 0 while all batches have had
        one size.
    """

    start: int
    stop: int
    batch_size: int
    image_size: int = 0
    offset: int = 0

    def examples_before(self, step: int) -> int:
        """Returns the number of examples of the run's steps before `step`, one of this phase."""
        return self.offset + step * self.batch_size


class Phases(tuple[Phase, ...]):
    """The phases of a run, in order, without gaps; at least one.

    >>> phases = make_phases([(1, 64), (2, 96, 4)], epochs=3, examples=20, batch_size=10)
    >>> [(phase.start, phase.stop, phase.image_size, phase.batch_size) for phase in phases]
    [(0, 2, 0, 10), (2, 4, 64, 10), (4, 9, 96, 4)]
    >>> phases.steps, phases.examples_before(6), phases.steps_of_epochs(2.5, 20)
    (9, 48, 7)
    """

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return self[-1].stop

    @property
    def starts(self) -> tuple[int, ...]:
        """First steps of all phases but the first one."""
        return tuple(phase.start for phase in self[1:])

    def of_step(self, step: int) -> Phase:
        """Returns the phase of step number `step`, from 0; the last one from its end on."""
        return next((phase for phase in self if step < phase.stop), self[-1])

    def examples_before(self, step: int) -> int:
        """Returns the number of examples of the first `step` steps."""
        return self.of_step(step).examples_before(step)

    def steps_of_epochs(self, epochs: float, examples: int) -> int:
        """Returns the number of steps that use each of `examples` examples `epochs` times."""
        for phase in self:
            stop = _stop(phase, epochs, examples)
            if stop <= phase.stop or phase is self[-1]:
                return max(stop, phase.start)
        raise AssertionError("there is a last phase")

    def between(self, start: int, stop: int) -> Iterator[Phase]:
        """Yields the parts of the phases from step `start` to step `stop` - 1."""
        for phase in self:
            is_last = phase is self[-1]
            part = max(start, phase.start), stop if is_last else min(stop, phase.stop)
            if part[0] < part[1]:
                yield phase._replace(start=part[0], stop=part[1])


def _stop(phase: Phase, epochs: float, examples: int) -> int:
    """Returns the first step after those of `epochs` epochs, in the batches of a phase."""
    return math.ceil((epochs * examples - phase.offset) / phase.batch_size)


def make_phases(
    schedule: Sequence[Sequence[float]], *, epochs: float, examples: int, batch_size: int
) -> Phases:
    """Makes the phases of a run.

    A phase begins with the first batch that begins in its first epoch.

    Args:
      schedule: rows of the first epoch, the side of the images and, optionally, the batch size; 0
        for `batch_size`. Before the first row, images have the size of the dataset.
      epochs: passes over the training split.
      examples: size of the training split.
      batch_size: examples per step.
    """
    rows = [(float(row[0]), int(row[1]), int(*row[2:]) or batch_size) for row in schedule]
    if not rows or rows[0][0] > 0:
        rows = [(0.0, 0, batch_size), *rows]
    phases: list[Phase] = []
    start = seen = 0
    for i, (_, image_size, size) in enumerate(rows):
        last = min(rows[i + 1][0], epochs) if i + 1 < len(rows) else epochs
        phase = Phase(start, start, size, image_size, seen - start * size)
        phase = phase._replace(stop=max(start, _stop(phase, last, examples)))
        if phase.stop > start or (not phases and i + 1 == len(rows)):
            phases.append(phase)
        start, seen = phase.stop, phase.examples_before(phase.stop)
    return Phases(phases or [Phase(0, 0, batch_size)])


def one_phase(batch_size: int) -> Phases:
    """Returns the phases of a run of any length with images and batches of one size."""
    return Phases([Phase(0, 0, batch_size)])
