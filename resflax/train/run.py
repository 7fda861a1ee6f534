"""A run as its config describes it: model, dataset, optimizer, engine and steps."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float
from ml_collections import ConfigDict

from resflax.data import Dataset
from resflax.data.phases import Phases
from resflax.distributed import Engine
from resflax.distributed.placement import to_default_device
from resflax.errors import UserError
from resflax.nn import ResNet
from resflax.train.averaging import evaluated_weights
from resflax.train.builders import build_schedules
from resflax.train.config import to_json_dict
from resflax.train.ensemble import abstract_states, initial_states
from resflax.train.eval_step import EvalStep
from resflax.train.finetune import freeze_patterns
from resflax.train.image_sizes import build_phases
from resflax.train.model_record import model_record
from resflax.train.precise_bn import StatsStep
from resflax.train.state import TrainState, create_state
from resflax.train.step import TrainStep
from resflax.train.teacher import Teacher
from resflax.train.whitening import whiten_stem
from resflax.weights import PretrainedConfig


@dataclass(frozen=True)
class Run:
    """Everything that a `Trainer` needs, built from a config.

    Attributes:
      config: a copy.
      dataset: training and test split, with the normalization of both.
      model: the network, without `axis_name`.
      pretrained: config of the pretrained weights; None to initialize from the seed.
      read_variables: `seed -> variables`: reads the pretrained weights, fitted to the dataset.
      notes: lines that say what was loaded.
      steps: number of training steps.
      schedules: learning rate by step, of each member; one for a single network.
      optimizer: an optax transformation.
      engine: devices and how they share a batch.
      train_step: pure `(state, batch) -> (state, metrics)`.
      eval_step: pure `(state, batch) -> metrics`.
      predict_step: pure `(state, batch) -> per-example arrays`.
      stats_step: pure `(state, batch) -> batch statistics`.
      teacher: the network that the run distils; None for none.
      stem_kernel: first kernel before the first step, which whitens the images; None for a random
        one.
    """

    config: ConfigDict
    dataset: Dataset
    model: nn.Module
    pretrained: PretrainedConfig | None
    read_variables: Callable[[int], Any]
    notes: tuple[str, ...]
    steps: int
    schedules: tuple[optax.Schedule, ...]
    optimizer: optax.GradientTransformation
    engine: Engine
    train_step: TrainStep
    eval_step: EvalStep
    predict_step: EvalStep
    stats_step: StatsStep
    teacher: Teacher | None = None
    stem_kernel: Float[np.ndarray, "*sizes channels outputs"] | None = None

    @cached_property
    def phases(self) -> Phases:
        """Steps with one size of images and of batches."""
        return build_phases(self.config, len(self.dataset.train))

    @property
    def name(self) -> str:
        """Name of the model, or of the weights that say which one it is."""
        return str(self.config.model or self.config.pretrained)

    @property
    def size(self) -> int:
        """Number of networks."""
        return int(self.config.ensemble.size)

    @property
    def members_of_network(self) -> int:
        """Number of members of one network, an efficient ensemble; else 1."""
        return self.model.spec.members if isinstance(self.model, ResNet) else 1

    def init(self) -> TrainState:
        """Creates the state before the first step, not yet on the engine's devices.

        On a CPU the program is compiled with fewer optimizations, which gives the same bits in half
        the time: it runs once per network.

        Raises:
          UserError: if pretrained weights are needed and cannot be read.
        """
        if self.pretrained:
            return initial_states(
                self.config, lambda seed: self._create(seed, self.read_variables(seed))
            )
        disabled = jax.config.jax_disable_jit  # type: ignore[attr-defined]
        if jax.default_backend() != "cpu" or disabled:
            return initial_states(self.config, self._create)
        lowered = jax.jit(self._create).lower(jax.ShapeDtypeStruct((), jnp.uint32))
        create = lowered.compile({"xla_backend_optimization_level": "1"})
        return initial_states(self.config, lambda seed: create(to_default_device(np.uint32(seed))))

    def abstract_state(self) -> TrainState:
        """Returns the shapes and dtypes of the state; computes nothing."""
        one = jax.eval_shape(self._create, jax.ShapeDtypeStruct((), jnp.uint32))
        return abstract_states(self.config, one)

    def with_teacher(self, state: TrainState) -> TrainState:
        """Returns a state as the training step takes it; checkpoints have it without teacher."""
        return dataclasses.replace(state, teacher=self.teacher.variables if self.teacher else {})

    def schedules_after(self, reductions: tuple[int, ...]) -> tuple[optax.Schedule, ...]:
        """Returns `schedules` after some reductions of each member's by `schedule=plateau`."""
        if not any(reductions):
            return self.schedules
        return build_schedules(self.config, len(self.dataset.train), reductions)

    def check_model(self) -> None:
        """Raises `UserError` if the model cannot take the images; computes nothing.

        JAX caches the trace for the initialization.
        """
        with model_errors(self.config, self.dataset):
            self.abstract_state()

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """JSON values that all checkpoints of the run have in common.

        "config"; "model", the values of `PretrainedConfig.to_json_dict`, None for a linen module of
        the user's own; "pretrained", the same of the weights that the run began from, None without;
        "data", the fingerprint of the dataset; and "teacher", that of the teacher, None without.
        """
        model = model_record(self.model, self.dataset)
        return {
            "config": to_json_dict(self.config),
            "model": model and model.to_json_dict(),
            "pretrained": self.pretrained and self.pretrained.to_json_dict(),
            "data": self.dataset.fingerprint(),
            "teacher": self.teacher and self.teacher.fingerprint(),
        }

    def _create(self, seed: Any, variables: Any = None) -> TrainState:
        """Creates the state of one network."""
        shape = self.dataset.image_shape
        state = build_state(self.config, self.model, self.optimizer, shape, variables, seed)
        if self.config.schedule == "plateau":
            state = dataclasses.replace(state, reductions=jnp.zeros((), jnp.int32))
        return state if self.stem_kernel is None else whiten_stem(state, self.stem_kernel)


def build_state(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    variables: Any = None,
    seed: Any = None,
) -> TrainState:
    """Builds the state of one network before the first step, from given variables or a seed.

    The seed, which may be traced, is by default that of the config.
    """
    return create_state(
        model,
        optimizer,
        config.seed if seed is None else seed,
        image_shape,
        variables,
        ema=evaluated_weights(config) != "params",
        freeze=freeze_patterns(config, model),
    )


@contextlib.contextmanager
def model_errors(config: ConfigDict, dataset: Dataset) -> Iterator[None]:
    """Raises `UserError` where a model cannot take the dataset's images."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError) as e:
        name, shape = config.model or config.pretrained, dataset.image_shape
        reason = str(e).splitlines()[0]
        raise UserError(f"{name} cannot be built for images of {shape}: {reason}") from e
