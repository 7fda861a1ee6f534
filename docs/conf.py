"""Configuration of the documentation site: `sphinx-build -W -b html docs build/docs`.

The pages are the Markdown files of this directory. Nothing is fetched while it is built, unless
RESFLAX_DOCS_INTERSPHINX=1 asks for links to the documentation of other libraries.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

import resflax

project = "resflax"
author = "the resflax authors"
version = release = resflax.__version__

extensions = ["myst_parser", "sphinx_copybutton"]

# Markdown: links to headings, as on GitHub.
myst_heading_anchors = 4
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "resflax"

if os.environ.get("RESFLAX_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "flax": ("https://flax.readthedocs.io/en/latest", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "optax": ("https://optax.readthedocs.io/en/latest", None),
        "python": ("https://docs.python.org/3", None),
    }


def link_from_docs(app: Sphinx, path: Path, page: str, text: list[str]) -> None:
    """Makes the links of an included file of the repository's root relative to this directory."""
    links = re.sub(r"\]\((?!https?:|#)", "](../", text[0])
    for root_link, link in (("../docs/", ""), ("../CONTRIBUTING.md", "contributing.md")):
        links = links.replace(f"]({root_link}", f"]({link}")
    text[0] = links


def setup(app: Sphinx) -> None:
    """Connects the functions above to the build."""
    app.connect("include-read", link_from_docs)
