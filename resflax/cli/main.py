"""The `resflax` command: a table of subcommands, each imported when it is called."""

import codecs
import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from resflax.errors import UserError, unknown
from resflax.run.signals import InterruptedRunError, raise_at_interrupts
from resflax.runtime import set_unknown_home, tune_malloc


class Command(NamedTuple):
    """A row of `COMMANDS`: "module:function", called with the arguments, and a description."""

    function: str
    description: str


COMMANDS: dict[str, Command] = {
    "train": Command("resflax.cli.train:main", "train a network, or resume a run"),
    "compare": Command("resflax.cli.compare:main", "compare the results and configs of runs"),
    "sweep": Command("resflax.cli.sweep:main", "train a grid of runs, with a table of the results"),
    "list": Command("resflax.cli.models:list_main", "list the networks by name"),
    "info": Command("resflax.cli.models:info_main", "show the size of a network"),
    "data": Command("resflax.cli.data:main", "prepare a dataset, or draw its augmented images"),
    "convert": Command("resflax.cli.weights:convert_main", "convert weights from and to PyTorch"),
    "evaluate": Command("resflax.cli.evaluate:main", "evaluate a trained network on a dataset"),
    "average": Command("resflax.cli.average:main", "average the parameters of several networks"),
    "probe": Command("resflax.cli.probe:main", "fit a linear probe on a network's features"),
    "predict": Command("resflax.cli.predict:main", "predict the classes of images"),
    "export": Command("resflax.cli.export:main", "export a model for PyTorch, ONNX or StableHLO"),
    "plan": Command("resflax.cli.plan:main", "compile a run for a TPU pod or GPUs, without them"),
    "doctor": Command("resflax.cli.doctor:main", "check that results are reproducible here"),
    "study": Command("resflax.cli.study:main", "run an experiment of the papers"),
}


def run_command(command: Callable[[], None]) -> int:
    """Calls a command and returns its exit status.

    A `UserError` prints one line to stderr and returns 2. A run that was stopped by a signal prints
    one line to stdout and returns 128 + the signal's number. Ctrl-C in other commands returns 130.
    """
    try:
        command()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except InterruptedRunError as e:
        print(e)
        return e.status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def print_any_text() -> None:
    r"""Lets stdout take any text, in any encoding.

    File names that are not valid in the file system's encoding keep their bytes; other characters
    that stdout's encoding lacks become escapes, `\xe9`.
    """

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        assert isinstance(error, UnicodeEncodeError)
        start = error.start
        one = UnicodeEncodeError(error.encoding, error.object, start, start + 1, error.reason)
        try:
            return codecs.lookup_error("surrogateescape")(one)
        except UnicodeEncodeError:
            return codecs.backslashreplace_errors(one)

    codecs.register_error("resflax_escape", escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="resflax_escape")


def exit_on_signals() -> None:
    """Makes SIGTERM and SIGINT exit at once while modules are imported, before a run starts."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os._exit(128 + number))


def silence_libraries() -> None:
    """Silences errors that libraries print in addition to the one line of `run_command`.

    On a full disk, threads of TensorStore call a closed event loop of Orbax, each with a traceback;
    and Python reports the memory that it frees for Grain's terminated workers.
    """
    from absl import logging as absl_logging

    sys.warnoptions.append("ignore:resource_tracker:UserWarning")  # for the tracker's process
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    default_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            default_hook(unraisable)

    sys.unraisablehook = hook


def _usage() -> str:
    rows = "\n".join(f"  {name:9}{row.description}" for name, row in COMMANDS.items())
    return f"usage: resflax {{{','.join(COMMANDS)}}} ...\n\n{rows}\n\nresflax COMMAND --help"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `resflax COMMAND ...` and returns its exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0

    def call() -> None:
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        module, function = COMMANDS[name].function.split(":")
        getattr(importlib.import_module(module), function)(rest)

    return run_command(call)


def entry(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `main` as a program: sets up the process, and exits with the status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in ("train", "sweep"):
        exit_on_signals()
        silence_libraries()
    else:
        raise_at_interrupts()
    tune_malloc()
    set_unknown_home()
    # It warns of each directory that it cannot write.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    print_any_text()
    status = main(arguments)
    if status and "jax" in sys.modules:  # libraries may have threads that do not end
        from resflax.distributed.processes import exit_process

        exit_process(status)
    sys.exit(status)
