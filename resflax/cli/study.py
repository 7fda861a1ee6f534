"""The command `study`: a table of studies, each imported when it is chosen."""

import argparse
import importlib
import signal
from pathlib import Path

from absl import logging

from resflax.errors import Parser, unknown
from resflax.files import path_type
from resflax.run.signals import InterruptedRunError
from resflax.runtime import enable_compilation_cache

# Modules of `resflax.study`, and their descriptions.
STUDIES = {
    "degradation": "deeper plain networks train worse, deeper residual ones do not",
    "responses": "standard deviation of layer responses, plain and residual",
    "shortcuts": "shortcut options A, B, C and none: errors and costs",
    "shortcuts2016": "scaled, gated, convolutional and dropped shortcuts",
    "activation": "orders of norm and activation in a block",
    "identity": "stacks of blocks that fit the identity, plain and residual",
    "gradients": "gradient norm of each layer at initialization",
    "dropping": "test error of a trained network without one of its blocks",
}


def _usage() -> str:
    rows = "\n".join(f"  {name:15}{description}" for name, description in STUDIES.items())
    return (
        "usage: resflax study NAME ...\n\nRuns an experiment of He et al. (2015) or a follow-up"
        f" paper.\n\n{rows}\n\nresflax study NAME --help"
    )


def main(arguments: list[str]) -> None:
    """Runs a study; the same command resumes it if it was stopped.

    Raises:
      UserError: if the study or one of its arguments is invalid.
      InterruptedRunError: after Ctrl-C.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    module = importlib.import_module(f"resflax.study.{name}")
    parser = Parser(
        prog=f"resflax study {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path(f"runs/{name}")
    parser.add_argument(
        "--out", type=path_type, default=default, help=f"workdir; default: {default}"
    )
    module.add_arguments(parser)
    args = parser.parse_args(rest)
    logging.set_verbosity(logging.ERROR)  # Orbax logs every checkpoint
    enable_compilation_cache()
    try:
        module.run(args)
    except KeyboardInterrupt as e:
        message = f"\nstopped: the same command with --out={args.out} resumes"
        raise InterruptedRunError(signal.SIGINT, message) from e
