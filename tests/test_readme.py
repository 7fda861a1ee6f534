"""The Python blocks of README.md run in order; its commands are those that CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 6
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out == (
        "['W1', 'W2'] ['W1', 'W2', 'Ws']\n(2, 5)\n['accuracy', 'loss']\n(2, 3, 3, 16, 16)\n"
    )
    assert namespace["logits"].shape == (2, 10)


def test_commands_of_ci_are_lines_of_the_readme():
    lines = TEXT.splitlines()
    assert "pip install -e . && python train.py" in lines
    assert 'pip install -e ".[test]" && pytest' in lines


def test_configs_in_commands_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for config in re.findall(r"--config=(configs/\w+\.py)", page.read_text()):
            assert (ROOT / config).exists(), f"{page.name}: {config}"


def test_models_in_the_table_exist():
    from resflax import create_model

    for row in re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE):
        names = re.findall(r"`(\w+)`", row)
        prefix = re.match(r"\D+", names[0])[0]
        prefix = "resnetv2_" if names[0].startswith("resnetv2_") else prefix
        for name in names:
            create_model(name if not name[0].isdigit() else prefix + name)


def test_links_lead_to_files():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
