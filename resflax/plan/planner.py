"""Compiles the steps of a run for a topology, and finds the largest batch that fits."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from resflax.errors import UserError
from resflax.plan.compiled import CompiledStep, compile_step
from resflax.plan.datasets import Facts, planned_dataset
from resflax.plan.topologies import Topology, topology_devices
from resflax.plan.waiting import CompileClock
from resflax.run.signals import exit_at_interrupt
from resflax.train.image_sizes import has_batch_sizes
from resflax.train.input_pipeline import fits_on_device
from resflax.train.programs import Program, run_programs
from resflax.train.run import Run
from resflax.train.run_builder import build

# Compiles that search for the largest batch, after one that does not fit.
MAX_TRIES = 3


class LargestBatch(NamedTuple):
    """The largest batch of one device that fits.

    Attributes:
      per_device: examples on one device, of each member; 0 if not even one fits.
      compiled: whether the step with this batch was compiled; else it is extrapolated.
    """

    per_device: int
    compiled: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a run on a topology.

    Attributes:
      run: the run, built for the topology's devices.
      topology: where it runs.
      steps: the steps by name: "train", "evaluation" and, if the run has it, "precise BN".
      largest_batch: the largest training batch of one device.
    """

    run: Run
    topology: Topology
    steps: dict[str, CompiledStep]
    largest_batch: LargestBatch

    @property
    def fits(self) -> bool:
        """Whether all steps fit into the memory of a device."""
        return all(step.fits for step in self.steps.values())

    @property
    def memory_bytes(self) -> int:
        """Memory of a device in the step that needs most."""
        return max(step.memory.total for step in self.steps.values())

    @property
    def device_rates(self) -> tuple[float, float]:
        """Examples per second of a device by compute and by memory; infinite if nothing is known.

        Roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): peak rates of the chip, and
        communication that costs nothing.
        """
        step, chip = self.steps["train"], self.topology.chip
        if not (step.flops and step.bytes):
            return float("inf"), float("inf")
        compute = chip.device_flops(self.run.config.dtype) * step.examples / step.flops
        return compute, chip.device_bandwidth * step.examples / step.bytes


class Planner:
    """Builds and compiles runs of one config on the devices of a topology.

    Args:
      config: see `default_config`.
      topology: where it is to run.
      facts: of a dataset that is not here and not known.

    Raises:
      UserError: if the compiler is missing, or the config does not fit the devices.
    """

    def __init__(self, config: ConfigDict, topology: Topology, facts: Facts | None = None) -> None:
        if has_batch_sizes(config):
            raise UserError(
                f"config.data.size_schedule is {config.data.size_schedule}: expected rows without"
                " batch sizes, since a plan finds the largest batch"
            )
        self.config, self.topology = config, topology
        self.devices = topology_devices(topology)
        self._open_dataset = partial(planned_dataset, given=facts)
        self._clock = CompileClock(topology.chip.platform)
        self.run = self._build(config)
        self._check_dataset()

    def plan(
        self,
        print_line: Callable[[str], None] = lambda line: None,
        only: Sequence[str] = (),
    ) -> Plan:
        """Compiles the steps of the run, and others until one fits if the training step does not.

        Args:
          print_line: called with what was found on the way.
          only: names of the steps to compile, "train" among them; () for all.
        """
        programs = [
            (program, program.lower())
            for program in run_programs(self.run)
            if not only or program.name in only
        ]
        # The small ones first, from which the time of the large ones is estimated.
        order = sorted(programs, key=lambda row: _lines(row[1]))
        compiled = {p.name: self._compile(p, lowered, self.run) for p, lowered in order}
        steps = {program.name: compiled[program.name] for program, _ in programs}
        largest = self._largest_batch(steps["train"], print_line)
        return Plan(self.run, self.topology, steps, largest)

    def _build(self, config: ConfigDict) -> Run:
        return build(config, devices=self.devices, open_dataset=self._open_dataset)

    def _check_dataset(self) -> None:
        """Raises `UserError` if the images that each device holds do not fit into its memory."""
        split, chip = self.run.dataset.train, self.topology.chip
        if not fits_on_device(self.config.data.placement, self.run.dataset):
            return
        size = split.images.nbytes
        if size > chip.device_memory:
            raise UserError(
                f"the training images take {size / 1e9:.1f} GB on each device, which has"
                f" {chip.device_memory / 1e9:.1f} GB: use --config.data.placement=host"
            )

    def _compile(self, program: Program, lowered: Any, run: Run) -> CompiledStep:
        text = f"compiling the {program.name} step for {self.topology.describe()}"
        examples = program.examples / len(self.devices)
        with self._clock.show(text, _lines(lowered)), exit_at_interrupt():
            return compile_step(
                program.name, lowered, examples, self.topology.chip, run.engine.devices
            )

    def _largest_batch(
        self, train: CompiledStep, print_line: Callable[[str], None]
    ) -> LargestBatch:
        """Returns the largest batch of a device, by extrapolation, or if it is smaller, compiled.

        Nothing is extrapolated from a step whose temporaries stay on the chip.
        """
        tried = self.config.batch_size // self.run.engine.batch_devices
        fixed = self._fixed_bytes() + train.memory.code
        step, unit = train, self.config.grad_accum_steps
        batch = _scaled(tried, step, fixed, unit)
        if train.fits and not train.memory.temporaries:
            return LargestBatch(tried, compiled=True)
        if train.fits:
            most = len(self.run.dataset.train) // self.run.engine.batch_devices // unit * unit
            return LargestBatch(max(min(batch, most), tried), compiled=False)
        for _ in range(MAX_TRIES):
            if not batch:
                return LargestBatch(0, compiled=False)
            print_line(f"{tried} images a device do not fit: trying {batch}")
            config = self.config.copy_and_resolve_references()
            config.batch_size = batch * self.run.engine.batch_devices
            run = self._build(config)
            program = next(run_programs(run))
            step, tried = self._compile(program, program.lower(), run), batch
            if step.fits:
                return LargestBatch(batch, compiled=True)
            batch = min(_scaled(tried, step, fixed, unit), tried // 2 // unit * unit)
        return LargestBatch(batch, compiled=False)

    def _fixed_bytes(self) -> int:
        """Returns the bytes of one device's arguments that do not depend on the batch."""
        state, data = next(run_programs(self.run)).arguments
        held = (state, data.get("dataset", {}))
        return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(held))


def _shard_bytes(leaf: Any) -> int:
    shard = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    for length in shard:
        size *= length
    return size


def _scaled(batch: int, step: CompiledStep, fixed: int, unit: int) -> int:
    """Returns the batch that fills the memory, if all but `fixed` bytes are proportional to it."""
    memory = step.memory
    own = 0 if memory.temporaries == memory.total else fixed  # the total is without the arguments
    share = (memory.available - fixed) / max(memory.total - own, 1)
    scaled = int(batch * share)
    step_size = unit * (8 if scaled >= 8 * unit else 1)  # rows of eight fill a TPU's registers
    return max(scaled, 0) // step_size * step_size


def _lines(lowered: Any) -> int:
    return lowered.as_text().count("\n")
