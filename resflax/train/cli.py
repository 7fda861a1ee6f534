"""The command line: `--config=FILE`, `--config.key=value` and `--workdir=FOLDER`."""

import sys
from collections.abc import Callable
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
        config, path = values.config, Path(values["config"].config_filename)
    except (flags.Error, AttributeError, KeyError) as e:
        raise _explain(e, argv) from e
    except OSError as e:
        raise UserError(f"cannot read the config file: {str(e).splitlines()[-1].strip()}") from e
    finally:
        sys.argv = saved
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}: expected --config=FILE, --config.KEY=VALUE"
                        " or --workdir=FOLDER")
    return config, path.stem, values.workdir


def _explain(error: Exception, argv: list[str]) -> UserError:
    known = flat_keys(default_config())
    for arg in argv[1:]:
        key = arg.split("=")[0].lstrip("-").removeprefix("no")
        if key.startswith("config.") and key.removeprefix("config.") not in known:
            return unknown("config key", key, [f"config.{k}" for k in known])
    return UserError(" ".join(str(error).split()))


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
    keys = "\n".join(f"  --config.{key}={value!r}" for key, value in flat_keys(default_config()).items())
    return f"{doc}\nKeys and their defaults, before the recipe's:\n{keys}"
