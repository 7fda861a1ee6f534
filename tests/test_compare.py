"""`resflax compare`: figures and configs of runs, finished and unfinished ones, in one table."""

import json

import pytest
from helpers.commands import run_command

from resflax.run import curves
from resflax.run.run_summary import differing_keys, read_run


def write_run(path, config, records, results=None):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if results:
        (path / "results.json").write_text(json.dumps(results))


def record(step, split, loss, accuracy):
    numbers = {"step": step, "epoch": step / 10, "loss": loss, "accuracy": accuracy}
    return {**numbers, "split": split, "learning_rate": 0.1, "examples_per_second": 1000.0}


CONFIG = {"model": "cifar_resnet8", "dataset": "digits", "epochs": 2, "data": {"flip": False}}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A finished run, one that has not finished, and one with a validation split."""
    monkeypatch.chdir(tmp_path)
    finished = [record(10, "train", 2.0, 0.2), record(10, "test", 1.5, 0.75)]
    finished += [record(20, "train", 1.0, 0.6), record(20, "test", 1.25, 0.5)]
    results = {"parameters": 77850, "wall_seconds": 75.0, "examples_per_second": 2000.0}
    write_run(tmp_path / "a", CONFIG, finished, results)
    other = CONFIG | {"seed": 1, "data": {"flip": True}}
    write_run(tmp_path / "b", other, finished[:2])
    with (tmp_path / "b" / "metrics.jsonl").open("ab") as file:
        for line in (b"\xff", b'{"accuracy": null}', b"[1]"):
            file.write(line + b"\n")
        for key, value in (("accuracy", None), ("epoch", "1"), ("split", 3), ("step", True)):
            row = record(12, "test", 1.0, 1.0) | {key: value}
            file.write(json.dumps(row).encode() + b"\n")
        file.write(b'{"step": 15, "epo')  # the run is writing it
    validated = [record(10, "validation", 1.0, 0.25), record(20, "validation", 1.0, 0.5)]
    write_run(tmp_path / "c", CONFIG, [*validated, record(20, "test", 1.0, 0.25)], results)
    return tmp_path


def test_table_has_final_and_best_figures(runs, capsys):
    assert run_command("compare", "a", "b") == 0
    table, differences = capsys.readouterr().out.split("\n\n")
    header, *rows = [line.split() for line in table.splitlines()]
    assert header[:5] == ["run", "test", "acc.", "best", "at"]
    finished = ["0.5000", "0.7500", "10", "1.2500", "77.8", "k", "01:15", "2,000", "finished"]
    assert rows[0] == ["a", *finished]
    unfinished = ["0.7500", "0.7500", "10", "1.5000", "-", "-", "1,000", "unfinished,", "epoch"]
    assert rows[1] == ["b", *unfinished, "1", "of", "2"]
    lines = [line.split() for line in differences.splitlines()]
    assert lines == [["a", "b"], ["config.data.flip", "False", "True"], ["config.seed", "-", "1"]]


def test_validation_split_has_a_column_and_is_the_best_by(runs, capsys):
    assert run_command("compare", "a", "c") == 0
    table, note = capsys.readouterr().out.split("\n\n")
    assert note == "The configs are equal.\n"
    _, a, c = [line.split() for line in table.splitlines()]
    assert a[1:4] == ["-", "0.5000", "0.7500"]
    assert c[1:5] == ["0.5000", "0.2500", "0.5000", "20"]


def test_json_has_the_same_figures(runs, capsys):
    assert run_command("compare", "a", "b", "--json") == 0
    a, b = json.loads(capsys.readouterr().out)["runs"]
    assert (a["path"], a["state"], a["best_step"], a["parameters"]) == ("a", "finished", 10, 77850)
    assert (b["state"], b["steps"]) == ("unfinished, epoch 1 of 2", 10)
    assert (b["parameters"], b["test_accuracy"]) == (None, 0.75)
    assert a["config"] == {"data.flip": False, "seed": None}
    assert b["config"] == {"data.flip": True, "seed": 1}


def test_curves_have_one_line_per_run_and_split(runs, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path, title: figures.append(figure))
    assert run_command("compare", "a", "c", "--curves=curves.png") == 0
    loss, accuracy = figures[0].axes
    assert [[*line.get_xdata()] for line in loss.lines] == [[1, 2], [1, 2], [1, 2], []]
    assert [[*line.get_ydata()] for line in accuracy.lines] == [[75, 50], [20, 60], [25, 50], []]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a", "c"]


def test_curves_are_a_png(runs):
    assert run_command("compare", "a", "b", "c", "--curves=curves.png") == 0
    assert (runs / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "nowhere"], "nowhere is not the workdir of a run, which has config.json and"),
        (["a", "."], "is not the workdir of a run"),
        (["a", "b", "./a"], "a is given twice: expected different runs"),
        (["a", "--curves=a.svg"], "--curves is a.svg: expected a name ending in .png"),
        ([], "the following arguments are required: RUN"),
        (["bad"], "bad has a corrupt config.json"),
    ],
)
def test_invalid_arguments_are_one_line(arguments, message, runs, capsys):
    write_run(runs / "bad", CONFIG, [])
    (runs / "bad" / "config.json").write_text("{")
    assert run_command("compare", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_run_without_records_is_shown_as_unfinished(runs, capsys):
    write_run(runs / "new", CONFIG, [])
    assert run_command("compare", "new") == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == ["new", *["-"] * 7, "unfinished,", "epoch", "0", "of", "2"]


def test_differing_keys_have_a_value_of_each_run(runs):
    assert differing_keys([read_run(runs / name) for name in "abc"]) == {
        "data.flip": [False, True, False],
        "seed": [None, 1, None],
    }
