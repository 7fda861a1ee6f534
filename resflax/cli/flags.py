"""Flags of a training run: `--config=FILE`, `--config.KEY=VALUE`, `--workdir=DIR`, processes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from resflax.cli.arguments import add_process_options, process_config
from resflax.cli.config_values import set_values, takes_text
from resflax.cli.dataset_recipe import find_recipe_of, workdir_name
from resflax.cli.recipe import load_recipe, split_recipe
from resflax.distributed import DistributedConfig
from resflax.errors import Parser, UserError
from resflax.files import where_type
from resflax.train.config import default_config
from resflax.train.config_rules import check_values
from resflax.train.dataset import build_dataset
from resflax.train.launch import RESUME
from resflax.train.run_builder import OpenDataset
from resflax.train.unknown_keys import unknown_flag
from resflax.train.unused_keys import reset_unused

DEFAULT_RECIPE, DEFAULT_DATASET = "configs/digits.py", "digits"
CONFIG_FLAG = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
RECIPE_FLAG = re.compile(r"--?config(?:=(.*))?", re.DOTALL)


class TrainCommand(NamedTuple):
    """A parsed command line.

    Attributes:
      config: the recipe, with the values of the command line.
      name: name of the config file, with its argument; without one, of the dataset.
      workdir: "" if not given.
      resume: "auto" or "never".
      distributed: arguments for several processes.
      notes: lines on the recipe, and on its keys that the command line leaves without effect.
    """

    config: ConfigDict
    name: str
    workdir: str
    resume: str
    distributed: DistributedConfig
    notes: tuple[str, ...] = ()


class _Words(NamedTuple):
    """The words of a command line.

    Attributes:
      recipes: values of `--config`.
      texts: the text of each key of `--config.KEY`, the last one if there are several; see
        `set_values`.
      others: all other words.
    """

    recipes: list[str]
    texts: dict[str, str | None]
    others: list[str]


def parse(
    arguments: Sequence[str],
    default: str = DEFAULT_RECIPE,
    *,
    others: Sequence[str] = (),
    open_dataset: OpenDataset = build_dataset,
) -> TrainCommand:
    """Parses a command line.

    Args:
      arguments: without the program's name.
      default: recipe for the digits if there is no `--config`.
      others: names of flags that the caller has parsed, for errors.
      open_dataset: opens the dataset of a config, to choose the recipe of a command line without
        `--config`.

    Raises:
      UserError: on anything that cannot be parsed.
    """
    words = _split_words(arguments)
    parser = Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--workdir", default="", type=where_type)
    parser.add_argument("--resume", default="auto")
    add_process_options(parser)
    args, rest = parser.parse_known_args(words.others)
    for i, word in enumerate(rest):
        if word.startswith("-"):
            flags = [*others, "config", *vars(args)]
            raise unknown_flag(word, next(iter(rest[i + 1 :]), None), flags)
        folder = f"; a folder of images is --config.dataset=folder:{word}"
        raise UserError(
            f"unexpected argument {word!r}: expected --config=FILE, --config.KEY=VALUE"
            f" or --workdir=DIR{folder if Path(word).is_dir() else ''}"
        )
    if args.resume not in RESUME:
        raise UserError(
            f"--resume is {args.resume!r}: expected {' or '.join(RESUME)} (the same --workdir"
            " resumes a run, and --config.pretrained starts one from other weights)"
        )
    if len(words.recipes) > 1:
        raise UserError(f"--config is given {len(words.recipes)} times: expected one file")
    distributed = process_config(args)
    recipe = next(iter(words.recipes), default)
    dataset, notes = words.texts.get("dataset") or DEFAULT_DATASET, tuple[str, ...]()
    if words.recipes or dataset == DEFAULT_DATASET:
        path, argument = split_recipe(recipe)
        config, name = load_recipe(recipe), f"{path.stem}{argument}"
    else:
        workdir = args.workdir if args.resume == "auto" else ""
        config, notes = find_recipe_of(words.texts, workdir, open_dataset)
        name = workdir_name(dataset)
    notes += _set_values(config, words.texts)
    return TrainCommand(config, name, args.workdir, args.resume, distributed, notes)


def _set_values(config: ConfigDict, texts: dict[str, str | None]) -> tuple[str, ...]:
    """Sets keys of a recipe, and those that they leave without effect to their defaults.

    Returns:
      Lines that say which these are.
    """
    recipe = config.copy_and_resolve_references()
    set_values(config, texts)
    try:
        check_values(config)
        reset = reset_unused(config, recipe, texts)
    except UserError:  # of an invalid value, which `check_config` reports
        return ()
    if not reset:
        return ()
    keys = ", ".join(f"config.{key}" for key in reset)
    return (f"set back to the default, since the command line leaves no use for it: {keys}",)


def _split_words(arguments: Sequence[str]) -> _Words:
    """Splits a command line; a flag's value is in the same word or in the next one."""
    known, split, words = default_config(), _Words([], {}, []), list(arguments)

    def next_word() -> str | None:
        """Takes the next word, unless it is a flag."""
        return None if not words or words[0].startswith("--") else words.pop(0)

    while words:
        word = words.pop(0)
        if match := CONFIG_FLAG.fullmatch(word):
            negated, key, text = match.groups()
            if negated:
                text = "false" if text is None else f"no {text}"  # never a value
            elif text is None and takes_text(known, key):
                text = next_word()
            split.texts.pop(key, None)  # the order is that of the last ones
            split.texts[key] = text
        elif match := RECIPE_FLAG.fullmatch(word):
            recipe = match[1] or next_word()
            if not recipe or recipe.startswith("-"):
                raise UserError("--config needs a file: --config=FILE")
            split.recipes.append(recipe)
        else:
            split.others.append(word)
    return split
