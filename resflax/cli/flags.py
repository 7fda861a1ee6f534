"""Flags of a training run: `--config=FILE`, `--config.KEY=VALUE`, `--workdir=DIR`, processes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from resflax.distributed import DistributedConfig
from resflax.errors import UserError
from resflax.run.config_diff import flatten_config
from resflax.train.config import default_config
from resflax.train.ensemble_rules import unknown_key
from resflax.train.launch import RESUME

DEFAULT_RECIPE = "configs/digits.py"


class TrainCommand(NamedTuple):
    """A parsed command line.

    Attributes:
      config: the recipe, with the values of the command line.
      name: name of the config file, with its argument.
      workdir: "" if not given.
      resume: "auto" or "never".
      distributed: arguments for several processes.
    """

    config: ConfigDict
    name: str
    workdir: str
    resume: str
    distributed: DistributedConfig


def parse(arguments: Sequence[str], default: str | None = DEFAULT_RECIPE) -> TrainCommand:
    """Parses a command line.

    Args:
      arguments: without the program's name.
      default: recipe to use if there is no `--config`; None if it is required.

    Raises:
      UserError: on anything that cannot be parsed.
    """
    argv = _config_first(arguments, default)
    # A separate set of flags, so that those of imported modules are not accepted.
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "directory of the run", flag_values=values)
    flags.DEFINE_enum("resume", "auto", RESUME, "resume the run there", flag_values=values)
    flags.DEFINE_bool("distributed", False, "one of several processes", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host and port of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "number of processes", flag_values=values)
    flags.DEFINE_integer("process_id", None, "index of this process", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "the recipe", flag_values=values)
    # ml_collections looks for overrides in `sys.argv`, and for the recipe's module in
    # `sys.modules`, where an earlier recipe can be.
    sys.argv, saved = argv, sys.argv
    sys.modules.pop("config_config", None)
    try:
        rest = values(argv)
        config = values.config
        flatten_config(config)
    except (Exception, SystemExit) as e:  # a recipe is the user's code: it may raise anything
        raise _explain(e, argv) from e
    finally:
        sys.argv = saved
    if rest[1:]:
        raise UserError(
            f"unexpected argument {rest[1]!r}: expected --config=FILE, --config.KEY=VALUE"
            " or --workdir=DIR"
        )
    distributed = DistributedConfig(
        values.distributed, values.coordinator, values.num_processes, values.process_id
    ).from_env()
    distributed.validate()
    path, argument = _split(argv[1].partition("=")[2])
    name = f"{path.stem}{argument}"
    return TrainCommand(config, name, values.workdir, values.resume, distributed)


def _split(recipe: str) -> tuple[Path, str]:
    """Splits `FILE.py:ARGUMENT`."""
    path, separator, argument = recipe.rpartition(".py:")
    return (Path(f"{path}.py"), argument) if separator else (Path(recipe), "")


def find_recipe(recipe: str) -> str:
    """Returns the recipe's file, in the current directory or among those shipped with resflax."""
    path, argument = _split(recipe)
    package = Path(__file__).parents[1]
    # The wheel has the recipes inside the package; a checkout has them next to it.
    for root in (Path(), package, package.parent):
        if (root / path).is_file():
            return f"{root / path}:{argument}" if argument else str(root / path)
    return recipe


def _config_first(arguments: Sequence[str], default: str | None) -> list[str]:
    """Returns the arguments with `--config=FILE` first, where ml_collections expects it."""
    recipes, rest = [], []
    words = iter(arguments)
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
    if not recipes and default is None:
        raise UserError("a recipe is required: --config=FILE")
    return ["resflax", f"--config={find_recipe(recipes[0] if recipes else str(default))}", *rest]


def _explain(error: BaseException, argv: list[str]) -> UserError:
    """Returns one line for an error while flags and recipe were read."""
    known = flatten_config(default_config())
    for word in argv[1:]:
        group, _, key = word.partition("=")[0].lstrip("-").removeprefix("no").partition(".")
        if word.startswith("-") and group == "config" and key and key not in known:
            return unknown_key(key, known)
    recipe = argv[1].partition("=")[2]
    if not _split(recipe)[0].is_file():
        return UserError(f"there is no config file {recipe!r}")
    lines = str(error).split("Other fields present")[0].strip().splitlines() or ["no message"]
    if isinstance(error, flags.Error) and "Traceback" not in str(error):
        return UserError(" ".join(lines))
    # ml_collections passes on whole tracebacks, with the error in the last line.
    reason = lines[-1] if "Traceback" in str(error) else f"{type(error).__name__}: {lines[0]}"
    _, raised, message = reason.partition(f"{UserError.__name__}: ")
    if raised:  # the recipe's own message
        return UserError(message.strip())
    return UserError(f"cannot read the config file {recipe!r}: {reason.strip()}")


def usage(doc: str) -> str:
    """Returns `doc` and every config key with its default."""
    keys = "\n".join(
        f"  --config.{key}={value!r}" for key, value in flatten_config(default_config()).items()
    )
    return f"{doc}\nConfig keys and their defaults, before those of the recipe:\n{keys}"
