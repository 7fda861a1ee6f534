"""A plan as JSON values and as text."""

import dataclasses
import math
from typing import Any

from resflax.errors import quantity
from resflax.plan.collectives import Traffic
from resflax.plan.compiled import CompiledStep
from resflax.plan.planner import Plan


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON values.

    Returns:
      Of the training step "flops_per_example", "bytes_per_example", "collectives" (of one step on
      one device, by kind) and "images_per_second_bound" (of all devices; None if it does not fit);
      "memory_bytes" of one device in the step that needs most; "steps", the same for each step;
      "fits", "largest_batch", "topology", "devices" and more.
    """
    train, config, chip = plan.steps["train"], plan.run.config, plan.topology.chip
    bound = min(plan.device_rates) * len(plan.run.engine.devices)
    return {
        "topology": plan.topology.name,
        "num_slices": plan.topology.num_slices,
        "devices": len(plan.run.engine.devices),
        "device_kind": plan.run.engine.devices[0].device_kind,
        "model": plan.run.name,
        "dataset": config.dataset,
        "image_shape": list(plan.run.dataset.image_shape),
        "members": plan.run.size,
        "dtype": config.dtype,
        "engine": plan.run.engine.name,
        "fsdp": config.mesh.fsdp,
        "batch_size": config.batch_size,
        "examples_per_device": train.examples,
        "fits": plan.fits,
        "memory_bytes": plan.memory_bytes,
        "device_memory_bytes": chip.device_memory,
        **{key: value for key, value in _step_to_json(train).items() if key in _TOP},
        "images_per_second_bound": bound if math.isfinite(bound) else None,
        "bound_by": _bound_by(plan) if math.isfinite(bound) else None,
        "peak_flops": chip.device_flops(config.dtype),
        "peak_bytes_per_second": chip.device_bandwidth,
        "peak_source": chip.source,
        "largest_batch": plan.largest_batch._asdict(),
        "compile_seconds": sum(step.seconds for step in plan.steps.values()),
        "steps": {name: _step_to_json(step) for name, step in plan.steps.items()},
    }


_TOP = ("flops_per_example", "bytes_per_example", "collectives")


def _step_to_json(step: CompiledStep) -> dict[str, Any]:
    return {
        "fits": step.fits,
        "memory_bytes": step.memory.total,
        "argument_bytes": step.memory.arguments,
        "temporary_bytes": step.memory.temporaries,
        "flops_per_example": step.flops / step.examples if step.flops else None,
        "bytes_per_example": step.bytes / step.examples if step.bytes else None,
        "bytes_per_example_by_kind": {
            kind: size / step.examples for kind, size in step.bytes_by_kind.items()
        },
        "collectives": {
            kind: dataclasses.asdict(traffic) for kind, traffic in step.collectives.items()
        },
        "compile_seconds": step.seconds,
    }


def _bound_by(plan: Plan) -> str:
    compute, memory = plan.device_rates
    return "compute" if compute < memory else "memory"


def describe_plan(plan: Plan) -> str:
    """Returns a plan as lines of text."""
    run, chip = plan.run, plan.topology.chip
    devices = run.engine.devices
    head = (
        f"{run.name} for images of {'x'.join(map(str, run.dataset.image_shape))} on"
        f" {plan.topology.describe()}: {quantity(len(devices), 'device')}"
        f" ({devices[0].device_kind}), {run.engine.name} engine, {run.config.dtype},"
        f" {run.config.batch_size} images a step{_describe_members(plan)}"
    )
    rows = [("step", "memory", "GFLOP", "MB", "compiled"), ("", "a device", "an image", "an image")]
    rows += [_row(step) for step in plan.steps.values()]
    lines = [head, *(_align(row) for row in rows)]
    if "precise BN" not in plan.steps:
        lines.append("precise BN: not part of this run (config.precise_bn_batches=0)")
    lines += ["", _describe_memory(plan), *_describe_collectives(plan.steps["train"])]
    fsdp, slice_size = run.config.mesh.fsdp, len(devices) // plan.topology.num_slices
    if plan.topology.num_slices > 1 and slice_size % fsdp:
        lines.append(
            f"groups of {fsdp} devices that share a state (config.mesh.fsdp) cross the slices of"
            f" {slice_size}: a divisor of {slice_size} keeps their communication inside"
        )
    if math.isfinite(min(plan.device_rates)):
        lines.append(_describe_bound(plan))
    lines.append(f"peak rates: {chip.source}")
    return "\n".join(lines)


def _describe_members(plan: Plan) -> str:
    examples = f", {plan.steps['train'].examples:g} a device"
    members = plan.run.config.ensemble.size
    return examples if members == 1 else f" for each of {members} members{examples} in total"


def _align(row: tuple[str, ...]) -> str:
    first, *others = row
    return (f"{first:12}" + "".join(f"{cell:>14}" for cell in others)).rstrip()


def _format_bytes(size: float) -> str:
    """Returns a size with its unit.

    >>> _format_bytes(10_784_000_000), _format_bytes(9_695_744)
    ('10.78 GB', '9.70 MB')
    """
    unit, name = (1e9, "GB") if size >= 1e8 else (1e6, "MB")
    return f"{size / unit:.2f} {name}"


def _row(step: CompiledStep) -> tuple[str, ...]:
    memory = _format_bytes(step.memory.total)
    if not step.fits:
        return (
            step.name,
            f"> {memory}" if step.memory.temporaries else memory,
            "-",
            "-",
            "too large",
        )
    flops, size = step.flops / step.examples / 1e9, step.bytes / step.examples / 1e6
    return step.name, memory, f"{flops:.4g}", f"{size:.4g}", f"in {step.seconds:.0f} s"


def _describe_memory(plan: Plan) -> str:
    available = _format_bytes(plan.topology.chip.device_memory)
    answer = "fits" if plan.fits else "does not fit"
    return (
        f"memory: {_format_bytes(plan.memory_bytes)} of {available} a device, {answer};"
        f" {_describe_batch(plan)}"
    )


def _describe_batch(plan: Plan) -> str:
    batch, compiled = plan.largest_batch
    if not batch:
        return "not even one image a device fits"
    images = f"{batch} images a device"
    if plan.run.size > 1:
        images += " of each member"
    if compiled:
        return f"the largest batch that was compiled and fits: {images}"
    return f"the largest batch by linear extrapolation, not compiled: {images}"


def _describe_collectives(step: CompiledStep) -> list[str]:
    if not step.fits:
        return []
    if not step.collectives:
        return ["collectives of a training step: none"]
    lines = [f"  {kind:20}{_describe_traffic(row)}" for kind, row in step.collectives.items()]
    return ["collectives of a training step, arrays on one device:", *lines]


def _describe_traffic(traffic: Traffic) -> str:
    inside = f"{traffic.count:>4}  {traffic.bytes / 1e6:>9.2f} MB"
    if not traffic.count_across_slices:
        return inside
    return (
        f"{inside}; across slices {traffic.count_across_slices:>4}"
        f"  {traffic.bytes_across_slices / 1e6:>9.2f} MB"
    )


def _describe_bound(plan: Plan) -> str:
    compute, memory = plan.device_rates
    devices = len(plan.run.engine.devices)
    return (
        f"roofline: at most {min(compute, memory) * devices:,.0f} images/s, bound by"
        f" {_bound_by(plan)} (a device: {compute:,.0f} by compute, {memory:,.0f} by memory; without"
        " the time of communication)"
    )
