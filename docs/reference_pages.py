"""Reference pages that are generated from the code: networks, config, recipes and commands."""

import contextlib
import inspect
import io
import os
import re
from ast import get_docstring, parse
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from resflax.cli.main import COMMANDS, main
from resflax.cli.study import STUDIES
from resflax.train.config_keys import GROUPS, Key
from resflax.train.config_rules import expected_values
from resflax.zoo.cost import default_image_shape, format_count, part_costs
from resflax.zoo.registry import FAMILIES, create_model, list_models

RECIPES = Path(__file__).parents[1] / "configs"
COLUMNS = 90  # of help texts
SUBCOMMANDS = {"data": ("prepare",), "study": tuple(STUDIES)}


def write_reference_pages(folder: Path) -> None:
    """Writes all pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zoo.md").write_text(zoo_page())
    (folder / "config.md").write_text(config_page())
    (folder / "recipes.rst").write_text(recipes_page())
    (folder / "commands.md").write_text(commands_page())


def zoo_row(name: str) -> str:
    """Returns the row of a network: shape of the image, parameters and multiply-adds."""
    model = create_model(name, scan=False)
    shape = default_image_shape(model.spec)
    parts = part_costs(model, shape)
    parameters = format_count(sum(part.parameters for part in parts))
    multiply_adds = format_count(sum(part.multiply_adds for part in parts))
    return f"| `{name}` | {'x'.join(map(str, shape))} | {parameters} | {multiply_adds} |"


def zoo_page(row: Callable[[str], str] = zoo_row) -> str:
    """Returns the table of all networks, by family, with a row for each name."""
    parts = [
        "# Networks\n\nMultiply-adds are those of convolutions and matrix products for one image of"
        " the given shape, as by `resflax info NAME`, which also lists them by stage."
    ]
    for family in FAMILIES:
        rows = [row(name) for name in list_models() if name in family.SPECS]
        parts.append(f"## `resflax.zoo.{family.__name__.rpartition('.')[2]}`")
        parts.append(inspect.cleandoc(family.__doc__ or ""))
        header = "| name | image | parameters | multiply-adds |\n|---|---|---:|---:|"
        parts.append("\n".join([header, *rows]))
    return "\n\n".join(parts) + "\n"


def config_page() -> str:
    """Returns the reference of the config: default, meaning and valid values of every key."""
    parts = [
        "# Config\n\nKeys of the config of a run with their defaults, which a recipe and the flags"
        " `--config.KEY=VALUE` of `resflax train` replace. A key without a default is not set."
    ]
    for group, keys in GROUPS.items():
        header = "| key | default | meaning |\n|---|---|---|"
        rows = [_config_row(key, row) for key, row in keys.items()]
        parts += [f"## {group.capitalize()}", "\n".join([header, *rows])]
    return "\n\n".join(parts) + "\n"


def _config_row(key: str, row: Key) -> str:
    """Returns the row of a key, with its name as the anchor."""
    default = "" if row.default is None else f"`{row.default!r}`"
    text = f"{row.meaning[0].upper()}{row.meaning[1:]}."
    if (expected := expected_values(key)) != "a text":
        text += f" Values: {expected}."
    return f'| `{key}`{{id="{key}"}} | {default} | {_escape(text)} |'


def _escape(text: str) -> str:
    """Escapes what is markup in Markdown, except for code in backticks."""
    pieces = re.split("(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_\[\]<>|])", r"\\\1", p) for p in pieces)


def recipes_page() -> str:
    """Returns the recipes, with their docstrings and code, as reStructuredText."""
    parts = [
        "Recipes\n=======",
        "Config files for ``resflax train --config=configs/NAME.py``, each with its command and"
        " measured result.",
    ]
    for path in sorted(RECIPES.glob("*.py")):
        title = f"``configs/{path.name}``"
        parts += [
            f"{title}\n{'-' * len(title)}",
            get_docstring(parse(path.read_text())) or "",
            f".. literalinclude:: ../../configs/{path.name}\n   :pyobject: get_config",
        ]
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Returns the help texts of all commands."""
    parts = ["# Commands", _help_block([])]
    for command in _commands():
        parts += [f"## `resflax {' '.join(command)}`", _help_block([*command, "--help"])]
    return "\n\n".join(parts) + "\n"


def _commands() -> Iterator[tuple[str, ...]]:
    for name in COMMANDS:
        yield (name,)
        yield from ((name, sub) for sub in SUBCOMMANDS.get(name, ()))


def _help_block(arguments: list[str]) -> str:
    """Returns what a command prints, without the keys of the config, as a block of text."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=str(COLUMNS)),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),  # of argparse
    ):
        main(arguments)
    text, keys, _ = output.getvalue().partition("Keys of the config with")
    link = "\n\nand the keys of the [config](config.md)." if keys else ""
    return f"```text\n{text.strip()}\n```{link}"
