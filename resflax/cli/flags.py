"""The command line: `--config=FILE`, `--config.key=value`, `--workdir=FOLDER`, and processes."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from resflax.distributed.processes import DistributedConfig
from resflax.errors import UserError, unknown
from resflax.run.signals import InterruptedRunError
from resflax.train.config import default_config, flat_keys

RESUME = ("auto", "never")


class Command(NamedTuple):
    """What was asked for.

    Attributes:
      config: the recipe, with what was overridden.
      name: of the config file, without its ending.
      workdir: "" if none is named.
      resume: "auto" to go on with the run in the workdir, "never" for a new folder beside it.
      processes: that run it together.
    """

    config: ConfigDict
    name: str
    workdir: str
    resume: str
    processes: DistributedConfig


def parse(default: Path) -> Command:
    """Reads `sys.argv`.

    Args:
      default: the config file to take if none is named.

    Raises:
      UserError: on anything that cannot be understood.
    """
    argv = _recipe_first(sys.argv, default)
    # Flags of this call alone, so that imported modules' flags stay out of it.
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "the run's folder", flag_values=values)
    flags.DEFINE_enum("resume", "auto", RESUME, "of the run there", flag_values=values)
    flags.DEFINE_bool("distributed", False, "one of several processes", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host and port of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many there are", flag_values=values)
    flags.DEFINE_integer("process_id", None, "which one this is, from 0", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "the recipe", flag_values=values)
    # ml_collections looks for overrides in `sys.argv` itself, and for the recipe's module in
    # `sys.modules`, where an earlier recipe may lie.
    sys.argv, saved = argv, sys.argv
    sys.modules.pop("config_config", None)
    try:
        rest = values(argv)
        config, path = values.config, Path(config_flags.get_config_filename(values["config"]))
        flat_keys(config)
    except (Exception, SystemExit) as e:  # a recipe is the user's code: it may raise anything
        raise _explain(e, argv) from e
    finally:
        sys.argv = saved
    if rest[1:]:
        raise UserError(
            f"unexpected argument {rest[1]!r}: expected --config=FILE, --config.KEY=VALUE"
            " or --workdir=FOLDER"
        )
    processes = DistributedConfig(
        values.distributed, values.coordinator, values.num_processes, values.process_id
    ).found()
    processes.check()
    return Command(config, path.stem, values.workdir, values.resume, processes)


def _recipe_first(argv: list[str], default: Path) -> list[str]:
    """The arguments with one `--config=FILE` in front, where ml_collections wants it."""
    recipes, rest = [], []
    words = iter(argv[1:])
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in ("flagfile", "undefok"):
            raise UserError(f"unknown flag {word!r}: expected --config or --workdir")
        if word.startswith("-") and name == "config":
            value = value or next(words, "")
            if not value or value.startswith("-"):
                raise UserError("--config needs a file: --config=FILE")
            recipes.append(value)
        else:
            rest.append(word)
    if len(recipes) > 1:
        raise UserError(f"--config is given {len(recipes)} times: expected one file")
    return [argv[0], f"--config={recipes[0] if recipes else default}", *rest]


def _explain(error: BaseException, argv: list[str]) -> UserError:
    """One line for what went wrong while flags and recipe were read."""
    known = [f"config.{key}" for key in flat_keys(default_config())]
    for word in argv[1:]:
        key = word.partition("=")[0].lstrip("-").removeprefix("no")
        if word.startswith("-") and key.startswith("config.") and key not in known:
            return unknown("config key", key, known)
    recipe = argv[1].partition("=")[2]
    if not Path(recipe).is_file():
        return UserError(f"there is no config file {recipe!r}")
    lines = str(error).split("Other fields present")[0].strip().splitlines() or ["no message"]
    if isinstance(error, flags.Error) and "Traceback" not in str(error):
        return UserError(" ".join(lines))
    # ml_collections hands on whole tracebacks: the last line says it.
    reason = lines[-1] if "Traceback" in str(error) else f"{type(error).__name__}: {lines[0]}"
    return UserError(f"cannot read the config file {recipe!r}: {reason.strip()}")


def report(main: Callable[[], None]) -> int:
    """Runs `main`; the exit status.

    A `UserError` becomes one line on stderr and status 2; a run that was asked to end one on
    stdout and 128 + the signal's number.
    """
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except InterruptedRunError as e:
        print(e)
        return e.status
    return 0


def quiet() -> None:
    """Leaves it to `report` to tell what went wrong: libraries say it as well, at length.

    On a full disk TensorStore's threads call a loop of Orbax's that is closed by then, each with a
    traceback; and of Grain's workers, asked to end, Python says what memory it tidies up for them.
    """
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")  # in the process that tidies up
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def usage(doc: str) -> str:
    """`doc`, and every key of a config with its default."""
    keys = "\n".join(
        f"  --config.{key}={value!r}" for key, value in flat_keys(default_config()).items()
    )
    return f"{doc}\nKeys and their defaults, before the recipe's:\n{keys}"
