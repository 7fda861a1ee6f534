"""Counts the collectives of an ensemble's training step, compiled for devices that are not there.

Compiles the step for every way to lay out the members over the devices of a topology, and prints
how often each kind of collective occurs in the compiled program. Exits with status 1 if members on
separate devices communicate, or if a split batch needs anything but all-reduces. From the root of
the repository, for a TPU (needs `pip install libtpu==0.0.42.1`):

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost \
    TPU_ACCELERATOR_TYPE=v5litepod-4 PYTHONPATH=. \
    python tools/ensemble_collectives.py --platform=tpu --topology=v5e:2x2

and for NVIDIA GPUs (needs `pip install "jax[cuda12]==0.10.2"`), with XLA's target configuration of
the card in a text file:

    JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 PYTHONPATH=. \
    XLA_FLAGS="--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0" \
    python tools/ensemble_collectives.py --platform=cuda --topology=1x1x4 --target_config=h100.txtpb
"""

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from resflax import create_model
from resflax.distributed import EnsembleEngine
from resflax.train import create_state, make_optimizer, make_train_step, stack_states

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-[a-z]+|reduce-scatter)(?:-start)?\("
)
OPTIMIZER = make_optimizer("sgd", 0.1, weight_decay=1e-4)


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--platform", choices=("tpu", "cuda"), required=True)
    parser.add_argument("--topology", required=True, help="v5e:2x2 for a TPU, 1x1x4 for GPUs")
    parser.add_argument("--target_config", type=Path, help="XLA's description of a GPU")
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--size", type=int, default=4, help="number of members")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=128)
    return parser.parse_args()


def open_topology(args: argparse.Namespace) -> Sequence[Any]:
    """Returns the devices of the topology."""
    if args.platform == "tpu":
        return topologies.get_topology_desc(args.topology, "tpu").devices
    return topologies.get_topology_desc(
        platform="cuda", topology=args.topology, target_config=args.target_config.read_text()
    ).devices


def collectives(engine: EnsembleEngine, args: argparse.Namespace) -> Counter[str]:
    """Returns how often each kind of collective occurs in the compiled step."""
    model, shape = create_model(args.model), (args.image_size, args.image_size, 3)

    def initial() -> Any:
        return stack_states([create_state(model, OPTIMIZER, 0, shape)] * engine.size)

    rows = NamedSharding(engine.mesh, PartitionSpec("member", "batch"))
    n = engine.size, args.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((*n, *shape), jnp.float32, sharding=rows),
        "label": jax.ShapeDtypeStruct(n, jnp.int32, sharding=rows),
    }
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=engine.state_sharding),
        jax.eval_shape(initial),
    )
    step: Any = engine.compile_train(make_train_step(model, OPTIMIZER, axis_name=engine.axis_name))
    return Counter(COLLECTIVE.findall(step.lower(state, batch).compile().as_text()))


def main() -> int:
    """Prints one line per layout; returns the exit status."""
    args = parse_args()
    devices, failed = open_topology(args), False
    for member_devices in range(len(devices), 0, -1):
        if args.size % member_devices or len(devices) % member_devices:
            continue
        engine, start = (
            EnsembleEngine(devices, args.size, member_devices=member_devices),
            time.time(),
        )
        found = collectives(engine, args)
        allowed = {"all-reduce"} if engine.batch_devices > 1 else set()
        failed |= not set(found) <= allowed
        print(
            f"{args.size} {args.model} on {args.topology}, mesh {member_devices}x"
            f"{engine.batch_devices}: {dict(found) or 'no collectives'},"
            f" compiled in {time.time() - start:.0f} s",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
