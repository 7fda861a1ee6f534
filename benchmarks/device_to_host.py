"""Times a training step, copying the state to the host, and saving a checkpoint.

    python -m benchmarks.device_to_host --devices=8 --model=resnet50

It uses virtual CPU devices, so that the cost of gathering a replicated state can be measured
without accelerators. With `--processes=2`, each of two processes has half of the devices, as two
hosts would. With `--calls_only`, the arrays of the state have one element and the step adds one to
each: what a call costs in addition to its computation.
"""

import argparse
import contextlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from benchmarks.cli import check_json_path, run
from benchmarks.machine import ROOT, describe, machine
from benchmarks.report import number, table
from benchmarks.task import Task, check_integer, parse_task
from benchmarks.weights import make_batch
from resflax import create_model, tune_malloc
from resflax.errors import Parser, UserError
from resflax.files import path_type
from resflax.progress import ProgressMeter

# Columns of the table, and keys of the results.
TIMINGS = {
    "step s": "step_seconds",
    "first to_host s": "first_to_host_seconds",
    "to_host s": "to_host_seconds",
    "save s": "save_seconds",
}


def use_virtual_devices(count: int) -> None:
    """Makes JAX use `count` virtual CPU devices. Call it before JAX starts its backend."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
    os.environ["JAX_PLATFORMS"] = "cpu"


def _timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Returns the seconds that a call took, and its result once computed."""
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - start, result


def _setup(task: Task, engine: Any) -> tuple[Callable[..., Any], Any, Any]:
    """Returns the compiled training step, and the state and the batch on the devices."""
    from resflax.train import create_state, make_optimizer, make_train_step

    model = create_model(task.model, dtype=task.dtype, **task.overrides)
    optimizer = make_optimizer("sgd", task.learning_rate, weight_decay=task.weight_decay)
    step = make_train_step(model, optimizer, axis_name=engine.axis_name)
    state = create_state(model, optimizer, task.seed, (task.size, task.size, task.channels))
    rows = engine.local_slice(task.batch)
    images, labels = (array[rows] for array in make_batch(task))
    batch = engine.shard_batch({"image": images, "label": labels})
    return engine.compile_train(step), engine.put_state(state), batch


def _setup_calls_only(task: Task, engine: Any) -> tuple[Callable[..., Any], Any, Any]:
    """Returns the same for a step that adds one to every array, all of one element."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from resflax.train import create_state, make_optimizer

    model = create_model(task.model, dtype=task.dtype, **task.overrides)
    optimizer, shape = make_optimizer("sgd", 0.1), (task.size, task.size, task.channels)
    shapes = jax.eval_shape(lambda: create_state(model, optimizer, task.seed, shape))
    state = jax.tree.map(lambda x: np.zeros((1,) * min(x.ndim, 1), x.dtype), shapes)

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        loss = jnp.mean(batch["image"])
        loss = jax.lax.pmean(loss, engine.axis_name) if engine.axis_name else loss
        return jax.tree.map(lambda x: x + jnp.ones_like(x), state), {"loss": loss}

    batch = engine.shard_batch({"image": np.ones((len(engine.devices), 1), np.float32)})
    return engine.compile_train(step), engine.put_state(state), batch


def measure(
    task: Task, engine: Any, rounds: int, meter: ProgressMeter, *, calls_only: bool = False
) -> dict[str, float]:
    """Returns medians over `rounds` rounds of a step, a copy to the host and a checkpoint.

    Every copy follows a step, because JAX caches the host copy of an array.

    Args:
      task: network and global batch.
      engine: data-parallel engine.
      rounds: number of rounds.
      meter: progress meter, with one unit per round.
      calls_only: measure a step that computes almost nothing.
    """
    from resflax.distributed.processes import is_main_process
    from resflax.run.checkpoint import Checkpoint
    from resflax.run.checkpointer import Checkpointer

    meter.update(0, "compiling", force=True)
    step, state, batch = (_setup_calls_only if calls_only else _setup)(task, engine)
    _, (state, _) = _timed(step, state, batch)
    seconds: dict[str, list[float]] = {key: [] for key in TIMINGS.values()}
    seconds["first_to_host_seconds"].append(_timed(engine.to_host, state)[0])
    with tempfile.TemporaryDirectory() as directory:
        checkpointer = Checkpointer(Path(directory), max_to_keep=1) if is_main_process() else None

        def save(host_state: Any) -> None:
            if checkpointer:
                checkpointer.save(Checkpoint(int(host_state.step), {"state": host_state}, {}))
                checkpointer.wait()

        for r in range(rounds):
            step_seconds, (state, _) = _timed(step, state, batch)
            copy_seconds, host_state = _timed(engine.to_host, state)
            seconds["step_seconds"].append(step_seconds)
            seconds["to_host_seconds"].append(copy_seconds)
            seconds["save_seconds"].append(_timed(save, host_state)[0])
            meter.update(1, f"round {r + 1} of {rounds}")
        if checkpointer:
            checkpointer.close()
    return {key: statistics.median(values) for key, values in seconds.items()}


def _parse_args(argv: list[str]) -> tuple[argparse.Namespace, Task]:
    parser = Parser(
        prog="python -m benchmarks.device_to_host",
        description=(
            "Times a training step, copying the state from the devices to the host, and saving a"
            " checkpoint, on virtual CPU devices."
        ),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--devices", type=int, default=8, help="number of virtual devices; default: %(default)s")
    add("--processes", type=int, default=1, help="that share the devices; default: %(default)s")
    add("--process_id", type=int, default=0, help=argparse.SUPPRESS)  # of those that it starts
    add("--port", type=int, help=argparse.SUPPRESS)
    add("--model", default="resnet50", help="default: %(default)s")
    add("--size", type=int, default=64, help="height and width of images; default: %(default)s")
    add("--batch", type=int, default=16, help="global batch size; default: %(default)s")
    add("--engines", default="pmap,mesh,shard_map", metavar="A,B", help="default: %(default)s")
    add("--calls_only", action="store_true", help="a step that computes almost nothing")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--json", type=path_type, metavar="PATH", help="write the results to this file")
    args = parser.parse_args(argv)
    check_integer("--devices", args.devices, 1024)
    check_integer("--processes", args.processes, 64)
    if args.devices % args.processes:
        raise UserError(f"--devices is {args.devices}: expected a multiple of --processes")
    check_integer("--rounds", args.rounds, 10_000)
    check_json_path(args.json)
    return args, parse_task(f"{args.model}@{args.size}:{args.batch}", device="cpu")


@contextlib.contextmanager
def other_processes(argv: list[str], args: argparse.Namespace) -> Iterator[None]:
    """Starts the other processes if this is the first, and connects to them."""
    import jax

    from resflax.distributed import DistributedConfig

    others: list[subprocess.Popen[bytes]] = []
    if args.processes > 1 and args.port is None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            args.port = unused.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.device_to_host", *argv, f"--port={args.port}"]
        for i in range(1, args.processes):
            others.append(subprocess.Popen([*command, f"--process_id={i}"], cwd=ROOT))
    try:
        if args.processes > 1:
            address = f"127.0.0.1:{args.port}"
            DistributedConfig(True, address, args.processes, args.process_id).initialize()
        yield
        if args.processes > 1:
            jax.distributed.shutdown()  # at the exit, each process would wait for all others
    finally:
        for process in others:
            process.terminate()
            process.wait()


def main(argv: list[str]) -> None:
    """Measures all engines and prints a table."""
    args, task = _parse_args(argv)
    use_virtual_devices(args.devices // args.processes)
    tune_malloc()
    logging.set_verbosity(logging.ERROR)  # Orbax warns about checkpoints without metrics
    with other_processes(argv, args):
        _measure_engines(args, task, argv)


def _measure_engines(args: argparse.Namespace, task: Task, argv: list[str]) -> None:
    from resflax.distributed.engines import check_batch_size, make_engine
    from resflax.distributed.processes import is_main_process

    engines = {name: make_engine(name) for name in args.engines.split(",")}
    check_batch_size(task.batch, args.devices)
    info, results = machine(), {}
    output = sys.stderr if is_main_process() else io.StringIO()
    with contextlib.closing(ProgressMeter(args.rounds * len(engines), file=output)) as meter:
        for name, engine in engines.items():
            meter.print(f"{name} on {args.devices} virtual devices")
            only = args.calls_only
            results[name] = measure(task, engine, args.rounds, meter, calls_only=only)
    if not is_main_process():
        return
    processes = f" of {args.processes} processes" if args.processes > 1 else ""
    print(describe(info))
    print(f"\n## {task.name}, {task.dtype}, on {args.devices} virtual CPU devices{processes}\n")
    rows = [
        [name, *(number(values[key]) for key in TIMINGS.values())]
        for name, values in results.items()
    ]
    print(table(["engine", *TIMINGS], rows))
    if args.json:
        everything = {"argv": argv, "machine": info, "results": results}
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
