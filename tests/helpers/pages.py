"""README.md, the pages and notebooks of docs/, and the code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
GUIDES = sorted(DOCS.glob("*.md"))
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.md"))
PAGES = [*GUIDES, *NOTEBOOKS]


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Returns language ("" if none) and content of each fenced block that is not indented."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> list[str]:
    """Returns the fenced blocks of Python code that are not indented."""
    return [block for language, block in fenced_blocks(text) if language == "python"]
