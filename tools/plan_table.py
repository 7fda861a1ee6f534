"""Makes the table of docs/pods.md: ResNet-50 on TPU pods, by their compiler, without hardware.

Compiles the training step of `configs/imagenet_resnet50.py` for each pod and number of images a
chip, which takes minutes for each row. A row is appended to a file when it is done, and rows that
the file has are not compiled again: after a change of the step, use another file. Needs
`pip install "resflax[tpu-plan]"`. From the root of the repository:

    python tools/plan_table.py rows.jsonl
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resflax.runtime import compile_for_topologies

CONFIG = "configs/imagenet_resnet50.py"
BATCHES = (256, 128, 64)


class Pod(NamedTuple):
    """A row of `PODS`: the name under which a pod is rented, and its topology."""

    name: str
    topology: str
    num_slices: int = 1


PODS = (
    Pod("v5e-256", "v5e:16x16"),
    Pod("v4-32", "v4:2x2x4"),
    Pod("v5p-128", "v5p:4x4x4"),
    Pod("v6e-256", "v6e:16x16"),
    Pod("2 x v5e-256", "v5e:16x16", 2),
)
HEADER = (
    "| pod | chips | images a chip | memory | fits | GFLOP an image | MB an image | all-reduces"
    " | their MB | across slices | images/s at most | bound by |\n" + "|---" * 12 + "|"
)


def compile_row(pod: Pod, batch: int) -> dict[str, Any]:
    """Compiles the training step for a pod; returns the plan as JSON values."""
    from resflax.cli.recipe import load_recipe
    from resflax.plan.planner import Planner
    from resflax.plan.report import plan_to_json
    from resflax.plan.topologies import parse_topology

    topology = parse_topology(pod.topology, pod.num_slices)
    config = load_recipe(CONFIG)
    config.batch_size = batch * topology.device_count
    return plan_to_json(Planner(config, topology).plan(print, only=("train",)))


def format_row(pod: Pod, batch: int, plan: dict[str, Any]) -> str:
    """Returns a row of the table."""
    reduces = plan["collectives"].get("all-reduce", {})
    others = sorted(kind for kind in plan["collectives"] if kind != "all-reduce")
    count = f"{reduces.get('count', 0)}" + "".join(f", {kind}" for kind in others)
    cells = [pod.name, plan["devices"], batch, f"{plan['memory_bytes'] / 1e9:.1f} GB"]
    if not plan["fits"]:
        largest = plan["largest_batch"]["per_device"]
        return _join([*cells, f"no, {largest} do", *["-"] * 7])
    cells += [
        "yes",
        f"{plan['flops_per_example'] / 1e9:.2f}",
        f"{plan['bytes_per_example'] / 1e6:.1f}",
        count,
        f"{reduces.get('bytes', 0) / 1e6:.1f}",
        f"{reduces.get('count_across_slices', 0) or '-'}",
        f"{plan['images_per_second_bound']:,.0f}",
        plan["bound_by"],
    ]
    return _join(cells)


def _join(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def rows() -> Iterator[tuple[str, Pod, int]]:
    """Yields all rows, those of the most images first."""
    for batch in BATCHES:
        for pod in PODS:
            yield f"{pod.name}, {batch}", pod, batch


def main(path: Path) -> None:
    """Compiles the rows that the file lacks, and prints the table."""
    done: dict[str, Any] = {}
    if path.exists():
        done = dict(json.loads(line) for line in path.read_text().splitlines())
    for key, pod, batch in rows():
        if key not in done:
            done[key] = compile_row(pod, batch)
            with path.open("a") as file:
                file.write(json.dumps([key, done[key]]) + "\n")
    print(HEADER)
    for _, pod, batch in sorted(rows(), key=lambda row: (PODS.index(row[1]), row[2])):
        print(format_row(pod, batch, done[f"{pod.name}, {batch}"]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/plan_table.py FILE.jsonl")
    compile_for_topologies()
    main(Path(sys.argv[1]))
