"""Counts the collectives of training steps that are compiled for several devices.

The devices need not be there. Compiles the step of each model under `jit` over a mesh, with the
batch split over all devices. With --members, compiles that of an ensemble of it for every way to
lay out the members over the devices, by the ensemble engine and by `jit` over the same mesh. Prints
how often each kind of collective runs in a step, and the memory of temporaries per device; exits
with status 1 if members on separate devices communicate, or if a split batch needs anything but
all-reduces. --no_rule shows what XLA does without the rule of `kernels/partition.py`. From the root
of the repository:

    PYTHONPATH=. python tools/collectives.py --topology=cpu:8 --model cifar_resnext29_8x64d

Topologies of TPUs (v5e:2x2) and GPUs (h100:8) are those of `resflax plan`, and need the same
extras and environment variables (docs/pods.md).
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resflax import create_model
from resflax.distributed import EnsembleEngine
from resflax.plan.collectives import count_collectives
from resflax.plan.hlo import parse_program
from resflax.plan.topologies import parse_topology, topology_devices
from resflax.train import create_state, make_optimizer, make_train_step, stack_states

OPTIMIZER = make_optimizer("sgd", 0.1, weight_decay=1e-4)
# Where the lowering of a convolution decides whether it gives XLA a rule.
DECISIONS = ("resflax.kernels.backend.takes_rules", "resflax.kernels.conv.takes_rules")


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", required=True, help="cpu:8, v5e:2x2, h100:8, ...")
    parser.add_argument("--model", nargs="+", default=["cifar_resnet20"])
    parser.add_argument("--members", type=int, default=0, help="0 for single networks")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128, help="global; that of one member")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--no_rule", action="store_true", help="leave all partitioning to XLA")
    return parser.parse_args()


def open_topology(name: str) -> Sequence[Any]:
    """Returns the devices of a topology; "cpu:N" are N virtual devices."""
    platform, _, count = name.partition(":")
    if platform != "cpu":
        return topology_devices(parse_topology(name))
    jax.config.update("jax_num_cpu_devices", int(count))
    return jax.devices()


def arguments(model: Any, args: argparse.Namespace, state: NamedSharding, rows: Any) -> Any:
    """Returns shapes, dtypes and shardings of a step's state and batch."""
    shape = args.image_size, args.image_size, 3

    def initial() -> Any:
        one = create_state(model, OPTIMIZER, 0, shape)
        return stack_states([one] * args.members) if args.members else one

    n = (args.members, args.batch_size) if args.members else (args.batch_size,)
    batch = {
        "image": jax.ShapeDtypeStruct((*n, *shape), jnp.float32, sharding=rows),
        "label": jax.ShapeDtypeStruct(n, jnp.int32, sharding=rows),
    }
    state_shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=state), jax.eval_shape(initial)
    )
    return state_shapes, batch


def programs(name: str, devices: Any, args: argparse.Namespace) -> Iterator[tuple[str, bool, Any]]:
    """Yields description, whether the batch is split, and compiled step of each layout."""
    model, spec = create_model(name, dtype=args.dtype), PartitionSpec
    if not args.members:
        mesh = Mesh(np.array(devices), ("batch",))
        shardings = NamedSharding(mesh, spec()), NamedSharding(mesh, spec("batch"))
        step = jax.jit(make_train_step(model, OPTIMIZER), donate_argnums=0)
        yield "jit", True, step.lower(*arguments(model, args, *shardings)).compile()
        return
    for member_devices in range(len(devices), 0, -1):
        if args.members % member_devices or len(devices) % member_devices:
            continue
        engine = EnsembleEngine(devices, args.members, member_devices=member_devices)
        rows = NamedSharding(engine.mesh, spec("member", "batch"))
        shapes = arguments(model, args, engine.state_sharding, rows)
        layout = f"{member_devices}x{engine.batch_devices}"
        splits_batch = engine.batch_devices > 1
        mapped: Any = engine.compile_train(
            make_train_step(model, OPTIMIZER, axis_name=engine.axis_name)
        )
        yield f"engine, mesh {layout}", splits_batch, mapped.lower(*shapes).compile()
        plain = jax.jit(jax.vmap(make_train_step(model, OPTIMIZER)), donate_argnums=0)
        yield f"jit, mesh {layout}", splits_batch, plain.lower(*shapes).compile()


def main() -> int:
    """Prints one line per program; returns the exit status."""
    args = parse_args()
    devices, failed, start = open_topology(args.topology), False, time.time()
    with ExitStack() as stack:
        for name in DECISIONS if args.no_rule else ():
            stack.enter_context(mock.patch(name, return_value=False))
        for model in args.model:
            for layout, splits_batch, compiled in programs(model, devices, args):
                traffic = count_collectives(parse_program(compiled.as_text()), [0] * len(devices))
                found = {kind: row.count for kind, row in traffic.items()}
                failed |= not set(found) <= ({"all-reduce"} if splits_batch else set())
                megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
                print(
                    f"{model} on {args.topology}, {layout}: {found or 'no collectives'},"
                    f" {megabytes:.0f} MB, after {time.time() - start:.0f} s",
                    flush=True,
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
