"""The text of the documentation's notebooks. The build of the site executes them."""

import ast
import re

import pytest
import yaml
from helpers.pages import DOCS, NOTEBOOKS

CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    """Returns the front matter and the text of a notebook."""
    _, front_matter, text = request.param.read_text().split("---\n", 2)
    return yaml.safe_load(front_matter), text


def test_notebook_is_myst_of_jupytext(notebook):
    front_matter, _ = notebook
    # Without these entries, Sphinx takes the page for ordinary Markdown and executes nothing.
    assert front_matter["jupytext"]["text_representation"]["format_name"] == "myst"
    assert front_matter["jupytext"]["text_representation"]["extension"] == ".md"
    assert front_matter["kernelspec"]["name"] == "python3"


def test_notebook_has_title_and_links_to_guides(notebook):
    _, text = notebook
    prose = CELL.sub("", text)
    assert prose.lstrip().startswith("# ")
    assert len(re.findall("^# ", prose, re.MULTILINE)) == 1
    last_section = prose.rpartition("\n## ")[2]
    assert re.search(r"\]\(\.\./\w+\.md", last_section)


def test_notebook_code_is_valid_and_draws(notebook):
    _, text = notebook
    cells = CELL.findall(text)
    assert len(cells) == text.count("```{code-cell}") >= 3
    for cell in cells:
        ast.parse(re.sub("^[%!].*$", "pass", cell, flags=re.MULTILINE))
    assert any(re.search(r"\bplt\.|\.plot\(|\.imshow\(", cell) for cell in cells)


def test_notebooks_are_in_the_index():
    index = (DOCS / "index.md").read_text()
    section = index.partition(":caption: Notebooks")[2].partition("```")[0]
    linked = re.findall(r"^notebooks/(\w+)$", section, re.MULTILINE)
    assert sorted(linked) == [path.stem for path in NOTEBOOKS]
