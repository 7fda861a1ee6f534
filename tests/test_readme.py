"""README's Python runs, in order, in one namespace; its commands are those that CI runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_every_python_block_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 6
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out == (
        "['W1', 'W2'] ['W1', 'W2', 'Ws']\n['accuracy', 'loss']\n(3,)\n(2, 3, 3, 16, 16)\n"
    )
    assert namespace["logits"].shape == (2, 10)


def test_the_core_takes_fifteen_lines_and_an_ensemble_six():
    core, *_, ensemble, _ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(core.strip().splitlines()) <= 15
    lines = [
        line for line in ensemble.splitlines() if line.strip() and not line.startswith("print")
    ]
    assert len(lines) <= 6


def test_the_two_commands_stand_on_lines_of_their_own():
    lines = TEXT.splitlines()
    assert "pip install -e . && python train.py" in lines
    assert 'pip install -e ".[test]" && pytest' in lines


def test_the_family_table_names_models_that_exist():
    from resflax import create_model

    for row in re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE):
        names = re.findall(r"`(\w+)`", row)
        prefix = re.match(r"\D+", names[0])[0]
        prefix = "resnetv2_" if names[0].startswith("resnetv2_") else prefix
        for name in names:
            create_model(name if not name[0].isdigit() else prefix + name)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
