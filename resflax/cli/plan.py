"""Compiles the steps of a run for accelerators that are not here, and reports their costs.

    resflax plan --config=configs/imagenet_resnet50.py --topology=v5e:4x4 --config.batch_size=4096
    resflax plan --config=... --topology=v5e:16x16 --num_slices=2 --config.parallel=mesh
    resflax plan --config=... --topology=h100:8 --json=plan.json

It needs no accelerator and no data: the training, evaluation and precise-BN steps of the run are
compiled with its own engine and shardings by the compiler of the accelerator. TPUs need
`pip install "resflax[tpu-plan]"`, GPUs `pip install "resflax[gpu-plan]"`. A step of ResNet-50 takes
minutes for TPUs, and less than one for GPUs.

Flags, besides those of `resflax train`:

  --topology=NAME    TPUs: v4:2x2x4, v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1 (chips in each
                     direction), or as rented: v4-32, v5litepod-16, v5p-128, v6e-256;
                     GPUs: h100, h200, a100, h100:8 (of one host), h100:2x8 (hosts)
  --num_slices=N     several slices of TPUs, between which the network is slow
  --data=HEIGHTxWIDTHxCHANNELS:CLASSES:EXAMPLES
                     sizes of a dataset that is not here and not known by its name
  --json=FILE        also write the results as JSON
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from resflax.errors import Parser, UserError
from resflax.files import disk_errors_as_user_error, path_type, write_atomic
from resflax.runtime import compile_for_topologies


def main(arguments: list[str]) -> None:
    """Prints the plan of a config for a topology.

    Raises:
      UserError: if a flag is invalid, a compiler is missing, or the config does not fit.
    """
    if {"-h", "--help", "--helpfull"} & set(arguments):
        print(__doc__.rstrip())
        return
    args, rest = _parse(arguments)
    _check_json(args.json)
    # JAX reads these settings when it is imported.
    compile_for_topologies()
    from resflax.cli.flags import parse
    from resflax.plan.datasets import parse_facts, planned_dataset
    from resflax.plan.topologies import check_compiler, parse_topology

    facts = None if args.data is None else parse_facts(args.data)
    command = parse(
        rest, others=list(vars(args)), open_dataset=partial(planned_dataset, given=facts)
    )
    topology = parse_topology(args.topology, args.num_slices)
    check_compiler(topology.chip.platform)
    from resflax.plan.planner import Planner
    from resflax.plan.report import describe_plan, plan_to_json
    from resflax.train.config_rules import check_config

    check_config(command.config)
    for note in command.notes:
        print(note)
    plan = Planner(command.config, topology, facts).plan(print)
    print(describe_plan(plan))
    if args.json:
        _write_json(args.json, plan_to_json(plan))


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the flags of this command, and the words of the others."""
    parser = Parser(prog="resflax plan", allow_abbrev=False, add_help=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--num_slices", type=int, default=1)
    parser.add_argument("--data")
    parser.add_argument("--json", type=path_type)
    return parser.parse_known_args(arguments)


def _check_json(path: Path | None) -> None:
    """Raises `UserError` if no file can be written there, which is tried."""
    if path is None:
        return
    problem = ""
    if not path.parent.is_dir():
        problem = f"the folder {path.parent} does not exist"
    elif path.is_dir():
        problem = "is a folder"
    elif path.exists() and not path.is_file():
        problem = "is a device"
    if problem:
        raise UserError(f"--json={path}: {problem}: expected the name of a file")
    with disk_errors_as_user_error(f"--json={path} cannot be written", lambda: "nothing was run"):
        tempfile.TemporaryFile(dir=path.parent).close()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with disk_errors_as_user_error(f"{path} cannot be written", lambda: "nothing was saved"):
        write_atomic(path, json.dumps(values, indent=2).encode() + b"\n")
