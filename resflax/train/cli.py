"""The command line: `--config=FILE`, `--config.key=value` and `--workdir=FOLDER`."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from resflax.errors import UserError, unknown
from resflax.train.config import default_config, flat_keys


def parse(default: Path) -> tuple[ConfigDict, str, str]:
    """Reads `sys.argv`.

    Args:
      default: the config file to take if none is named.

    Returns:
      The config, the name of the config file without its ending, and the workdir ("" if none is
      named).

    Raises:
      UserError: on anything that cannot be understood.
    """
    argv = sys.argv
    if not any(arg.split("=")[0].lstrip("-") == "config" for arg in argv[1:]):
        argv = [argv[0], f"--config={default}", *argv[1:]]
    # Flags of this call alone, so that imported modules' flags stay out of it.
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "the run's folder", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "the recipe", flag_values=values)
    # ml_collections looks for overrides in `sys.argv` itself.
    sys.argv, saved = argv, sys.argv
    try:
        rest = values(argv)
        config, path = values.config, Path(config_flags.get_config_filename(values["config"]))
        flat_keys(config)
    except Exception as e:  # a recipe is the user's code: it may raise anything
        raise _explain(e, argv) from e
    finally:
        sys.argv = saved
    if rest[1:]:
        raise UserError(
            f"unexpected argument {rest[1]!r}: expected --config=FILE, --config.KEY=VALUE"
            " or --workdir=FOLDER"
        )
    return config, path.stem, values.workdir


def _explain(error: Exception, argv: list[str]) -> UserError:
    """One line for what went wrong while flags and recipe were read."""
    known = [f"config.{key}" for key in flat_keys(default_config())]
    # "--key=value" or "--key value".
    words = [word for arg in argv[1:] for word in arg.split("=", 1)]
    for word in words:
        key = word.lstrip("-").removeprefix("no")
        if word.startswith("-") and key.startswith("config.") and key not in known:
            return unknown("config key", key, known)
    text = " ".join(str(error).split())
    if isinstance(error, flags.Error):
        return UserError(text)
    recipe = next(b for a, b in pairwise([*words, ""]) if a.lstrip("-") == "config")
    if not Path(recipe).is_file():
        return UserError(f"there is no config file {recipe!r}")
    return UserError(f"cannot read the config file {recipe!r}: {type(error).__name__}: {text}")


def report(main: Callable[[], None]) -> int:
    """Runs `main`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def usage(doc: str) -> str:
    """`doc`, and every key of a config with its default."""
    keys = "\n".join(
        f"  --config.{key}={value!r}" for key, value in flat_keys(default_config()).items()
    )
    return f"{doc}\nKeys and their defaults, before the recipe's:\n{keys}"
