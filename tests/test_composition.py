"""The code blocks of docs/composition.md, each run as a program of its own."""

import re
from pathlib import Path

import jax
import pytest

from resflax.nn.field_table import FIELDS

PAGE = (Path(__file__).parents[1] / "docs" / "composition.md").read_text()
SECTIONS = dict(re.findall(r"\n## (.*?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("section", SECTIONS)
def test_recipe_runs(section):
    assert "assert " in SECTIONS[section]
    with jax.numpy_dtype_promotion("standard"):  # as in a user's program
        exec(compile(SECTIONS[section], section, "exec"), {"__name__": "recipe"})


def test_page_has_twelve_recipes_and_every_field():
    numbers = [int(n) for section in SECTIONS for n in re.findall(r"^(\d+)\. ", section)]
    assert numbers == list(range(1, 13))
    rows = dict(re.findall(r"\n\| `(\w+)` \| .*?\|(.*?)\|", PAGE))
    for field, row in FIELDS.items():
        if row.call and field != "conv":
            arguments = str(row.call.signature).partition(" -> ")[0]
            assert f"`{arguments}" in rows[field]
