"""The pages of the first steps, of models and of training, as a reader runs them."""

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.commands import run_command
from helpers.pages import DOCS, fenced_blocks

from resflax import create_model


@pytest.mark.slow
@pytest.mark.parametrize(("page", "count"), [("models.md", 3), ("training.md", 1)])
def test_python_code_prints_what_the_page_shows(page, count, capsys):
    blocks = fenced_blocks((DOCS / page).read_text())
    shown = [text for language, text in blocks if not language]
    codes = [text for language, text in blocks if language == "python"]
    assert len(codes) == len(shown) == count
    namespace: dict = {}
    for code, output in zip(codes, shown, strict=True):
        exec(code, namespace)
        assert capsys.readouterr().out == output


def test_models_in_the_table_exist():
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "models.md").read_text(), re.MULTILINE)
    rows = [row for row in rows if "=" not in row]  # without the arguments of `create_model`
    assert len(rows) == 13
    for row in rows:
        names = re.findall(r"`(\w+)`", row)
        family = names[0].rstrip("0123456789")
        for name in names:
            create_model(family + name if name.isdigit() else name)


@pytest.mark.slow
def test_digits_page_runs_with_a_small_network(tmp_path, monkeypatch, capsys):
    text = (DOCS / "digits.md").read_text()
    for words, replacement in (
        (
            "--workdir=runs/digits",
            "--workdir=runs/digits --config.model=cifar_resnet8 --config.epochs=1",
        ),
        ("--config.epochs=30", "--config.model=cifar_resnet8 --config.epochs=2"),
        ("--config.model=cifar_plain20", "--config.model=cifar_plain8 --config.epochs=1"),
    ):
        assert words in text
        text = text.replace(words, replacement)
    monkeypatch.chdir(tmp_path)
    printed, namespace = [], {}
    for language, block in fenced_blocks(text):
        if language == "sh":
            for line in block.splitlines():
                name, *arguments = shlex.split(line, comments=True)[1:]
                assert run_command(name, *arguments) == 0, line
        elif language == "python":
            exec(block, namespace)
        printed.append(capsys.readouterr().out)
    results = json.loads(Path("runs/digits/results.json").read_text())
    evaluation = json.loads(Path("report/evaluation.json").read_text())
    assert evaluation["accuracy"] == pytest.approx(results["test_accuracy"], abs=1e-9)
    assert any("already finished" in output for output in printed)
    assert any("digit2.png" in output for output in printed)
    assert {path.name for path in Path("runs").iterdir()} == {"digits", "plain"}
