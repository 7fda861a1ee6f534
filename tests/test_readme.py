"""The Python blocks of README.md run in order; its commands are those that CI runs."""

import pytest
from helpers.pages import README, python_blocks

TEXT = README.read_text()


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys):
    blocks = python_blocks(TEXT)
    assert len(blocks) == 2
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out == "['W1', 'W2'] ['W1', 'W2', 'Ws']\n"
    assert namespace["logits"].shape == (2, 10)
    logits = namespace["model"].apply(namespace["variables"], namespace["images"], train=False)
    assert (logits == namespace["logits"]).all()  # after the weights went to PyTorch and back


def test_readme_has_at_most_two_screens():
    assert len(TEXT.splitlines()) <= 110


def test_commands_of_ci_are_lines_of_the_readme():
    lines = TEXT.splitlines()
    assert "pip install -e . && python train.py" in lines
    assert 'pip install -e ".[test]" && pytest' in lines
