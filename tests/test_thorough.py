"""The list of tests that run with `pytest --thorough` only."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = [
    line
    for line in (ROOT / "tests" / "thorough.txt").read_text().splitlines()
    if line and not line.startswith("# ")
]


def test_lines_are_unique():
    assert len(LINES) > 50
    assert len(set(LINES)) == len(LINES)


@pytest.mark.parametrize("line", LINES)
def test_each_line_has_the_name_of_a_test_function(line):
    path, _, test = line.partition("::")
    name = test.split("[")[0]
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
