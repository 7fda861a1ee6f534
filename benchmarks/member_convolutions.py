"""Times the convolutions of an ensemble's training step, by how their members are computed.

    python -m benchmarks.member_convolutions --models=cifar_resnet8@8:64 --members=8 --backend=cpu

Each pass of each convolution of the network is timed alone, with different images and kernels for
each member. The choices of `resflax.kernels` for members follow its tables.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.cli import check_json_path, run, write_json
from benchmarks.compare import TOLERANCE, check_equal
from benchmarks.machine import describe, machine
from benchmarks.peers.resflax_net import make_training
from benchmarks.report import number, table
from benchmarks.task import DTYPES, Task, check_choice, check_integer, parse_task
from benchmarks.weights import make_batch
from resflax import tune_malloc
from resflax.errors import Parser
from resflax.files import path_type
from resflax.kernels.backend import BACKENDS
from resflax.kernels.conv import conv_p
from resflax.kernels.conv_params import ConvParams, ConvPass, Shape, xla_conv
from resflax.progress import ProgressMeter
from resflax.train import create_state

MAX_MEMBERS = 1024
# A timing is the mean of as many calls as fill this time.
MIN_SECONDS = 0.1
BASELINE = "one after another"
Convolve = Callable[[Any, Any], Any]


class Convolution(NamedTuple):
    """A pass of a convolution of one network."""

    conv_pass: ConvPass
    params: ConvParams
    lhs: Shape
    rhs: Shape
    dtype: Any

    @property
    def name(self) -> str:
        """Kernel, stride and shape of the image, such as `3x3/2 64x8x8x16`."""
        (height, width), stride = self.params.kernel_size, self.params.strides[0]
        x = self.lhs
        if self.conv_pass == "dgrad":
            x = self.params.result_shape("dgrad", self.lhs, self.rhs)
        return f"{height}x{width}/{stride} {'x'.join(map(str, x))}"


def find_convolutions(task: Task) -> Counter[Convolution]:
    """Returns the convolutions of the training step of one network, and how often each occurs."""
    training = make_training(task)
    images, labels = make_batch(task)
    shape = (task.size, task.size, task.channels)
    state = jax.eval_shape(
        lambda: create_state(training.model, training.optimizer, task.seed, shape)
    )
    jaxpr = jax.make_jaxpr(training.step)(state, {"image": images, "label": labels})
    return Counter(_walk(jaxpr.jaxpr))


def _walk(jaxpr: Any) -> Iterator[Convolution]:
    for equation in jaxpr.eqns:
        if equation.primitive is conv_p:
            lhs, rhs = (x.aval for x in equation.invars)
            static = equation.params
            yield Convolution(
                static["conv_pass"], static["params"], lhs.shape, rhs.shape, lhs.dtype
            )
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _walk(inner)


def implementations(convolution: Convolution, backend: str) -> dict[str, Convolve]:
    """Returns functions of `lhs` and `rhs`, each with a leading axis of members.

    Args:
      convolution: the pass of one network.
      backend: one of `BACKENDS`.
    """
    conv_pass, params = convolution.conv_pass, convolution.params
    single = partial(conv_p.bind, conv_pass=conv_pass, params=params, backend=backend)
    jitted = jax.jit(single)

    def separate(lhs: Any, rhs: Any) -> Any:
        return [jitted(a, b) for a, b in zip(lhs, rhs, strict=True)]

    return {
        BASELINE: separate,
        "loop": jax.jit(lambda lhs, rhs: lax.map(lambda pair: single(*pair), (lhs, rhs))),
        "XLA, grouped": jax.jit(lambda lhs, rhs: xla_conv(conv_pass, lhs, rhs, params)),
        "resflax": jax.jit(jax.vmap(single)),
    }


def measure(convolution: Convolution, members: int, backend: str, rounds: int) -> dict[str, float]:
    """Returns the seconds of each implementation for all members: the median over `rounds`.

    Raises:
      UserError: if two implementations compute different results.
    """
    rng = np.random.default_rng(0)
    lhs, rhs = (
        jnp.asarray(rng.standard_normal((members, *shape), np.float32), convolution.dtype)
        for shape in (convolution.lhs, convolution.rhs)
    )
    separate = (list(lhs), list(rhs))
    calls: dict[str, Callable[[], Any]] = {
        name: partial(function, *(separate if name == BASELINE else (lhs, rhs)))
        for name, function in implementations(convolution, backend).items()
    }
    _check_equal(calls, convolution)
    counts = {name: max(1, round(MIN_SECONDS / _seconds(call, 1))) for name, call in calls.items()}
    timings: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            timings[name].append(_seconds(call, counts[name]))
    return {name: statistics.median(values) for name, values in timings.items()}


def _check_equal(calls: dict[str, Callable[[], Any]], convolution: Convolution) -> None:
    outputs = {name: {convolution.name: np.array(list(call()))} for name, call in calls.items()}
    dtype = jnp.dtype(convolution.dtype).name
    check_equal(outputs, TOLERANCE[jax.default_backend(), dtype])


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / count


def measure_network(
    task: Task, members: int, backend: str, rounds: int, meter: ProgressMeter
) -> list[dict[str, Any]]:
    """Times all convolutions of a network; returns one row for each different one."""
    found = find_convolutions(task)
    rows = []
    for i, (convolution, count) in enumerate(found.items()):
        meter.update(0, f"{task.name}: convolution {i + 1} of {len(found)}")
        seconds = measure(convolution, members, backend, rounds)
        row = {"pass": convolution.conv_pass, "image": convolution.name, "count": count}
        rows.append({**row, "seconds": seconds})
    return rows


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Formats one line per convolution, and the sum over a step."""
    names = list(rows[0]["seconds"])
    total = {name: sum(row["count"] * row["seconds"][name] for row in rows) for name in names}
    count = sum(row["count"] for row in rows)
    lines = [*rows, {"pass": "sum", "image": "", "count": count, "seconds": total}]
    cells = [
        [
            line["pass"],
            line["image"],
            str(line["count"]),
            number(1e3 * line["seconds"][BASELINE]),
            *(number(line["seconds"][name] / line["seconds"][BASELINE]) for name in names[1:]),
        ]
        for line in lines
    ]
    return table(["pass", "kernel, image", "in a step", f"{BASELINE}, ms", *names[1:]], cells)


def _parse_args(argv: list[str]) -> tuple[argparse.Namespace, list[Task]]:
    parser = Parser(
        prog="python -m benchmarks.member_convolutions",
        description="Times the convolutions of an ensemble's training step.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--models", default="cifar_resnet8@8:64", metavar="A,B", help="default: %(default)s")
    add("--members", type=int, default=8, help="number of members; default: %(default)s")
    add("--backend", default="auto", help=f"{', '.join(BACKENDS)}; default: %(default)s")
    add("--dtype", default="float32", help=f"{', '.join(DTYPES)}; default: %(default)s")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--json", type=path_type, metavar="PATH", help="write the results to this file")
    args = parser.parse_args(argv)
    check_choice("backend", args.backend, BACKENDS)
    check_choice("dtype", args.dtype, DTYPES)
    check_integer("--members", args.members, MAX_MEMBERS)
    check_integer("--rounds", args.rounds, 10_000)
    check_json_path(args.json)
    names = [name for name in args.models.split(",") if name]
    return args, [parse_task(name, needs_peers=False, dtype=args.dtype) for name in names]


def main(argv: list[str]) -> None:
    """Measures all networks and prints a table for each."""
    args, tasks = _parse_args(argv)
    tune_malloc()
    info, results = machine(), {}
    print(describe(info), flush=True)
    for task in tasks:
        with contextlib.closing(ProgressMeter(file=sys.stderr)) as meter:
            rows = measure_network(task, args.members, args.backend, args.rounds, meter)
        results[task.name] = rows
        print(
            f"\n## {task.name}, {task.dtype}, {args.members} members, backend {args.backend},"
            f" {jax.default_backend()}\n\n{format_rows(rows)}",
            flush=True,
        )
    if args.json:
        write_json(args.json, argv, info, results)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
