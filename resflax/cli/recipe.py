"""Recipes: Python files with a function `get_config` that returns the config of a run."""

import importlib.util
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resflax.errors import UserError, suggest
from resflax.files import expand_path
from resflax.train.unknown_keys import unknown_key

# Name of the recipe's module while it is read.
MODULE = "resflax_recipe"
# The wheel has the recipes inside the package; a checkout has them next to it.
ROOTS = (Path(__file__).parents[1], Path(__file__).parents[2])


def split_recipe(recipe: str) -> tuple[Path, str]:
    """Splits `FILE.py:ARGUMENT`; the argument is "" without one.

    >>> split_recipe("digits_efficient.py:packed")
    (PosixPath('digits_efficient.py'), 'packed')
    """
    path, separator, argument = recipe.rpartition(".py:")
    return (Path(f"{path}.py"), argument) if separator else (Path(recipe), "")


def find_recipe(path: Path) -> Path:
    """Returns the recipe's file, in the current directory or among those shipped with resflax."""
    found = (root / path for root in (Path(), *ROOTS))
    return next((file for file in found if file.is_file()), path)


def shipped_recipes() -> list[str]:
    """Returns the names of the recipes that are shipped with resflax, such as configs/digits.py."""
    return sorted(
        f"configs/{file.name}" for root in ROOTS for file in (root / "configs").glob("[!_]*.py")
    )


def load_recipe(recipe: str) -> ConfigDict:
    """Returns the config of a recipe, `FILE.py` or `FILE.py:ARGUMENT`.

    Raises:
      UserError: if there is no such file, it does not return a config, or raises an error.
    """
    path, argument = split_recipe(expand_path(recipe, "--config"))
    path = find_recipe(path)
    if not path.is_file():
        name = f"configs/{path.stem}.py"
        raise UserError(f"there is no config file {recipe!r}: {suggest(name, shipped_recipes())}")
    try:
        get_config = _import_file(path).get_config
        config = get_config(argument) if argument else get_config()
    except UserError:  # the recipe's own message
        raise
    except (Exception, SystemExit) as e:  # a recipe is the user's code: it may raise anything
        # The errors of `ConfigDict` list all keys.
        lines = str(e).split("Other fields present")[0].strip().splitlines() or ["no message"]
        key = re.match(r"'?Key \"(.+)\" does not exist", lines[0])
        reason = str(unknown_key(key[1])) if key else f"{type(e).__name__}: {lines[0]}"
        raise UserError(f"cannot read the config file {recipe!r}: {reason}") from e
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"cannot read the config file {recipe!r}: get_config returns {type(config).__name__}:"
            " expected a ConfigDict, such as default_config()"
        )
    return config.lock()


def _import_file(path: Path) -> Any:
    """Imports a file as a module of its own, whatever was imported from other files before."""
    spec = importlib.util.spec_from_loader(MODULE, SourceFileLoader(MODULE, str(path)))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[MODULE]
    return module
