"""Pages of the documentation site that are generated from the code."""

import importlib
import inspect
import re
import runpy
import typing
from pathlib import Path

import pytest

from resflax import list_models
from resflax.cli.main import COMMANDS
from resflax.cli.study import STUDIES
from resflax.run.config_diff import flatten_config
from resflax.train import default_config
from resflax.zoo.registry import FAMILIES

DOCS = Path(__file__).parents[1] / "docs"
API = runpy.run_path(str(DOCS / "api_pages.py"))
REFERENCE = runpy.run_path(str(DOCS / "reference_pages.py"))


def public_names(package):
    """Returns the names of a package that are neither modules nor names of `typing`."""
    module = importlib.import_module(package)
    lazy = {"to_nnx"} if package == "resflax.nn" else set()
    return set(getattr(module, "__all__", ())) or lazy | {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name not in vars(typing)
    }


@pytest.mark.parametrize("package", API["PACKAGES"])
def test_api_page_has_every_public_name(package):
    page = API["api_page"](package)
    described = re.findall(rf"^\.\. [a-z:]+:: {package}\.(\w+)$", page, re.MULTILINE)
    assert len(described) == len(set(described))
    assert set(described) == public_names(package)


def test_api_page_of_tables_has_their_keys():
    page = API["api_page"]("resflax.nn")
    (entry,) = re.findall(r"py:data:: resflax\.nn\.SHORTCUTS\n(.*?)\n\n\.\.", page, re.DOTALL)
    assert ":type: dict[str, ShortcutRow]" in entry
    rows = dict(re.findall(r"^   - ``(.*?)``: (.*)$", entry, re.MULTILINE))
    assert list(rows) == ["A", "B", "B3", "C", "D", "none"]
    assert "zeros as the new channels" in rows["A"]
    assert rows["B"] == "strided 1x1 convolution (section 3.3)"


@pytest.mark.parametrize("package", API["PACKAGES"])
def test_api_page_explains_every_table_and_its_rows(package):
    for export in API["exports"](package):
        if export.directive == "data":
            entry = API["_data_entry"](export)
            assert re.search(r"\n\n   [A-Z].+\n\n", entry), f"{export.path} has no comment above it"
            rows = re.findall(r"^   - (.*)$", entry, re.MULTILINE)
            assert len(rows) == (len(export.value) if isinstance(export.value, dict) else 0)
            for row in rows:
                assert re.fullmatch(r"``.*?``: .*\w.*", row), f"{export.path}: comment of {row}"


def rows(page):
    """Returns the cells of the rows of a page whose first cell is code, by that cell."""
    cells = [line.strip(" |").split(" | ") for line in page.splitlines() if line[:3] == "| `"]
    table = {first.strip(" `"): [cell.strip() for cell in rest] for first, *rest in cells}
    assert len(table) == len(cells)
    return table


def test_config_page_has_default_meaning_and_values_of_all_keys():
    page = REFERENCE["config_page"]()
    table = rows(re.sub(r'`\{id="(.*?)"\}', "`", page))
    assert set(table) == set(flatten_config(default_config()))
    assert table["learning_rate"] == [
        "`0.1`",
        "Largest learning rate of the schedule. Values: more than 0.",
    ]
    assert table["data.crop_scale"][0] == "`(0.08, 1.0)`"
    assert table["decay_mask"][1].endswith("Values: one of kernels, all.")
    assert table["scan"][0] == ""


def test_config_page_has_an_anchor_for_every_key():
    anchors = re.findall(r'^\| `(.*?)`\{id="(.*?)"\} \|', REFERENCE["config_page"](), re.MULTILINE)
    assert [key for key, _ in anchors] == [anchor for _, anchor in anchors]
    assert {key for key, _ in anchors} == set(flatten_config(default_config()))


def test_config_page_escapes_markup_outside_code():
    default, meaning = rows(REFERENCE["config_page"]())['freeze`{id="freeze"}']
    assert "'stem\\*,stage\\[12\\]\\*'" in meaning
    assert default == ""


def test_zoo_page_has_every_network_once():
    page = REFERENCE["zoo_page"](lambda name: f"| `{name}` | |")
    assert set(rows(page)) == set(list_models())
    assert page.count("\n## ") == len(FAMILIES)


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "multiply_adds"),
    [
        ("resnet50", "224x224x3", "25.6 M", "4.09 G"),  # torchvision
        ("cifar_resnet20", "32x32x3", "270 k", "40.6 M"),
    ],
)
def test_zoo_row_has_published_costs(name, shape, parameters, multiply_adds):
    assert rows(REFERENCE["zoo_row"](name)) == {name: [shape, parameters, multiply_adds]}


def test_recipes_page_has_command_and_code_of_every_recipe():
    page = REFERENCE["recipes_page"]()
    recipes = sorted(path.name for path in (DOCS.parent / "configs").glob("*.py"))
    assert re.findall(r"^``configs/(\w+\.py)``$", page, re.MULTILINE) == recipes
    assert re.findall(r"literalinclude:: \.\./\.\./configs/(.*)", page) == recipes
    for name in recipes:
        docstring = page.partition(f"``configs/{name}``")[2].partition(".. literalinclude")[0]
        assert f"--config=configs/{name}" in docstring


def test_commands_page_has_help_of_every_command():
    page = REFERENCE["commands_page"]()
    titles = re.findall("^## `resflax (.*)`$", page, re.MULTILINE)
    assert [title for title in titles if " " not in title] == list(COMMANDS)
    assert {f"study {name}" for name in STUDIES} | {"data prepare"} <= set(titles)
    blocks = re.findall("```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1 + len(titles)
    for title, block in zip(["", *titles], blocks, strict=True):
        assert f"resflax {title}" in block
    assert "--config.epochs" not in page
