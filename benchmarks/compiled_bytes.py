"""Counts the bytes of memory traffic in compiled training steps, against a plain Flax ResNet.

    python -m benchmarks.compiled_bytes --topology=h100 --models=resnet50@224:256
    python -m benchmarks.compiled_bytes --topology=v5e:1x1 --models=resnet50@224:256

It needs the compiler of the accelerator but not the accelerator:
`pip install "resflax[gpu-plan]"` or `"resflax[tpu-plan]"`. On TPUs the bytes are those of the
compiler's cost analysis; on GPUs the operands and results of all kernels, each counted once,
the workspaces of libraries included.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from resflax.errors import Parser
from resflax.runtime import compile_for_topologies

if TYPE_CHECKING:
    from benchmarks.task import Task

IMPLEMENTATIONS = ("resflax", "flax")


def compile_train_step(task: "Task", implementation: str, topology_name: str) -> Any:
    """Compiles the training step of a task for one device of a topology.

    Args:
      task: the network and its batch.
      implementation: one of `IMPLEMENTATIONS`.
      topology_name: see `resflax.plan.topologies.parse_topology`.

    Returns:
      The `resflax.plan.compiled.CompiledStep`.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from benchmarks.peers import flax_net, resflax_net
    from benchmarks.weights import make_weights
    from resflax.plan.compiled import compile_step
    from resflax.plan.topologies import parse_topology, topology_devices

    topology = parse_topology(topology_name)
    device = topology_devices(topology)[0]
    make = {"resflax": resflax_net, "flax": flax_net}[implementation].make
    model = make(task)
    images = jax.ShapeDtypeStruct((task.batch, task.size, task.size, task.channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((task.batch,), jnp.int32)
    state = jax.eval_shape(lambda: model.make_state(make_weights(task)))
    sharding = SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        (state, images, labels),
    )
    traced = model.train_step.trace(*arguments)
    lowered = traced.lower(lowering_platforms=(topology.chip.platform,))
    return compile_step(implementation, lowered, task.batch, topology.chip, [device])


def make_row(task: "Task", step: Any, baseline: Any) -> list[str]:
    """Returns a row of the table."""
    return [
        task.name,
        step.name,
        f"{step.bytes / step.examples / 1e6:.1f}",
        f"{step.bytes / baseline.bytes:.2f}",
        f"{step.flops / step.examples / 1e9:.2f}",
        f"{step.memory.temporaries / 1e9:.2f}",
    ]


def main(argv: list[str]) -> None:
    """Prints a table of all models and implementations."""
    parser = Parser(
        prog="python -m benchmarks.compiled_bytes",
        description="Counts the bytes of compiled training steps, against a plain Flax ResNet.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--topology", default="h100", help="h100, a100, v5e:1x1, v6e:2x2 and others")
    add("--models", default="resnet50@224:256", metavar="NAME@SIZE:BATCH,...", help="networks")
    add("--dtype", default="bfloat16", help="dtype of the computation")
    args = parser.parse_args(argv)
    # JAX reads these settings when it is imported.
    compile_for_topologies()
    from benchmarks.report import table
    from benchmarks.task import parse_task

    tasks = [parse_task(name, dtype=args.dtype) for name in args.models.split(",")]
    rows = []
    for task in tasks:
        steps = {name: compile_train_step(task, name, args.topology) for name in IMPLEMENTATIONS}
        rows += [make_row(task, step, steps["flax"]) for step in steps.values()]
    header = ["network", "implementation", "MB an image", "vs flax", "GFLOP an image", "temp. GB"]
    print(table(header, rows))


if __name__ == "__main__":
    compile_for_topologies()
    from benchmarks.cli import run

    sys.exit(run(sys.argv[1:], main))
