"""Values of parameters and gradients at a step, for histograms."""

from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from resflax.data.phases import Phase
from resflax.train.builders import build_normalizer, build_train_step
from resflax.train.ensemble import is_ensemble
from resflax.train.image_sizes import resize_in_step
from resflax.train.input_pipeline import train_iterator
from resflax.train.run import Run
from resflax.train.state import TrainState


class HistogramSource:
    """Computes the values that histograms are of; all processes call it.

    The gradient is that of the next training step, which is computed twice: once here, by a program
    of its own.

    Args:
      run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._gradient_steps: dict[Phase, Any] = {}

    def __call__(self, state: TrainState, step: int) -> dict[str, np.ndarray]:
        """Returns the parameters as "params/PATH" and the gradient as "gradients/PATH".

        Of an ensemble, each array has all members, and there is no gradient.

        Args:
          state: on the engine's devices, after `step` steps.
          step: number of steps taken.
        """
        engine = self._run.engine
        arrays = {"params": engine.to_host(state.params)}
        if not is_ensemble(self._run.config):
            arrays["gradients"] = engine.to_host(self._gradient(state, step))
        return {path: np.asarray(x) for path, x in flatten_dict(arrays, sep="/").items()}

    def _gradient(self, state: TrainState, step: int) -> Any:
        """Returns the mean gradient over the batch that follows `step` steps, on the devices."""
        run, split = self._run, self._run.dataset.train
        phase = run.phases.of_step(step)
        if phase not in self._gradient_steps:
            gradient_step = resize_in_step(make_gradient_step(run), split, phase)
            self._gradient_steps = {phase: run.engine.compile_eval(gradient_step)}
        config = run.config.copy_and_resolve_references()
        config.data.num_workers = 0  # one batch is not worth the start of processes
        [batch] = train_iterator(run.engine, split, config, step, step + 1, run.phases)
        return self._gradient_steps[phase](state, batch)


def make_gradient_step(run: Run) -> Any:
    """Makes a pure `(state, batch) -> gradient` of the training loss of a single network.

    It is the training step with an optimizer that updates nothing and keeps the gradient as its
    state: before clipping and weight decay, averaged over the devices, without frozen parameters.
    With `config.sam_rho` it is the gradient at the parameters, the first of the step.
    """
    config = run.config.copy_and_resolve_references()
    config.on_nonfinite, config.ema_decay, config.sam_rho = "stop", 0.0, 0.0

    def keep(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return jax.tree.map(jax.numpy.zeros_like, grads), grads

    optimizer = optax.GradientTransformation(lambda params: optax.EmptyState(), keep)
    normalizer, axis_name = build_normalizer(run.dataset.train), run.engine.axis_name
    examples = len(run.dataset.train)
    step = build_train_step(
        config,
        run.model,
        optimizer,
        normalizer,
        axis_name=axis_name,
        examples=examples,
        distillation=run.teacher and run.teacher.distillation(config),
    )
    return lambda state, batch: step(state, batch)[0].opt_state
