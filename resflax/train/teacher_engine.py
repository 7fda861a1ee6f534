"""The engine of an ensemble that distils: all members share the variables of one teacher."""

import dataclasses
from typing import Any

from resflax.distributed import EnsembleEngine
from resflax.distributed.engines import Step
from resflax.train.state import TrainState


class TeacherEnsembleEngine(EnsembleEngine):
    """`EnsembleEngine` whose states have a teacher without a member axis, once on each device.

    Its compiled steps take and return whole states. Inside, the teacher is part of the data, which
    the members share, so that a vectorized program computes its convolutions with one kernel.
    """

    def put_state(self, state: Any) -> Any:
        """See `EnsembleEngine`; the teacher of a `TrainState` is replicated."""
        if not isinstance(state, TrainState):
            return super().put_state(state)
        own: TrainState = super().put_state(_without_teacher(state))
        return dataclasses.replace(own, teacher=self.replicate(state.teacher))

    def compile_train(self, step: Step) -> Step:
        """See `EnsembleEngine`."""

        def run(state: TrainState, data: Any) -> tuple[TrainState, Any]:
            own, teacher = data
            new, metrics = step(dataclasses.replace(state, teacher=teacher), own)
            return _without_teacher(new), metrics

        return _TrainProgram(super().compile_train(run))

    def compile_train_on_device_data(self, step: Step) -> Step:
        """See `EnsembleEngine`."""
        return self.compile_train(step)

    def compile_eval(self, step: Step) -> Step:
        """See `EnsembleEngine`; the step gets states without teacher."""
        return _EvalProgram(super().compile_eval(step))

    def compile_predict(self, step: Step) -> Step:
        """See `EnsembleEngine`; the step gets states without teacher."""
        return _EvalProgram(super().compile_predict(step))


def _without_teacher(state: TrainState) -> TrainState:
    return dataclasses.replace(state, teacher={})


class _TrainProgram:
    """A program that takes the teacher with the data, called with whole states."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def __call__(self, state: TrainState, data: Any) -> tuple[TrainState, Any]:
        new, metrics = self._program(_without_teacher(state), (data, state.teacher))
        return dataclasses.replace(new, teacher=state.teacher), metrics

    def lower(self, state: TrainState, data: Any) -> Any:
        """See `MemberProgram`."""
        return self._program.lower(_without_teacher(state), (data, state.teacher))


class _EvalProgram:
    """A program of states without teacher, called with whole states."""

    def __init__(self, program: Any) -> None:
        self._program = program

    def __call__(self, state: TrainState, data: Any) -> Any:
        return self._program(_without_teacher(state), data)

    def lower(self, state: TrainState, data: Any) -> Any:
        """See `MemberProgram`."""
        return self._program.lower(_without_teacher(state), data)
