"""Configuration of the documentation site: `sphinx-build -W -b html docs build/docs`.

The pages are the Markdown files of this directory, and those that are generated from the code.
The notebooks (`notebooks/*.md`, MyST Markdown of Jupytext) are executed; `-D nb_execution_mode=off`
builds the site without their output.
Nothing is fetched while the site is built, unless RESFLAX_DOCS_INTERSPHINX=1 asks for links to the
documentation of other libraries.
"""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

import resflax

HERE = Path(__file__).parent
sys.path.append(str(HERE))
from api_pages import write_api_pages  # noqa: E402
from reference_pages import write_reference_pages  # noqa: E402

project = "resflax"
author = "the resflax authors"
version = release = resflax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

# Markdown: links to headings, as on GitHub, and anchors of config keys.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

# Notebooks: an error in a cell fails the build. Files that they write are in a temporary directory.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds per cell, for a busy machine; each should take a few
nb_execution_in_temp = True
nb_output_stderr = "remove"
nb_merge_streams = True
exclude_patterns = ["**/.ipynb_checkpoints"]

copybutton_exclude = ".linenos, .gp, .go"

# Docstrings: Google style, with code in single backticks.
default_role = "py:obj"
autosummary_generate = False
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the types of attributes are those of the signature

smartquotes = False  # `''` and `--flag` as they are

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
    """Writes the generated pages, and connects the function above to the build."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":  # napoleon's name for attributes
            field.label = "Attributes"
    write_api_pages(HERE / "generated" / "api")
    write_reference_pages(HERE / "generated")
    app.connect("include-read", link_from_docs)
