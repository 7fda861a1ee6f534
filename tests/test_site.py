"""Pages of the documentation site that are generated from the code."""

import importlib
import inspect
import re
import runpy
import typing
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
API = runpy.run_path(str(DOCS / "api_pages.py"))


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
    assert re.findall("``(.*?)``", entry) == ["A", "B", "B3", "C", "D", "none"]
